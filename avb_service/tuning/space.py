"""Search spaces: YAML that is checked to the last endpoint before anything is launched. Knows nothing of Ray.

Floor 9.
"""

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from avb_service.errors import UserError
from avb_service.trees import Tree, read_yaml
from avb_service.tuning import checks
from avb_service.tuning.domains import DomainConfig
from avb_service.tuning.section import SpaceSection


class SpaceConfig(SpaceSection):
    """A search."""

    def problems(self) -> Iterator[str]:
        """Try every preset by itself, then every endpoint of every domain, what is between, and every two together."""
        yield from super().problems()
        yield from checks.problems(self)


def read_space(source: str | Path) -> SpaceConfig:
    """Read and check a search space.

    Raises:
        UserError: the file cannot be read, or trials of it could not be run; all reasons at once.
    """
    path = Path(source)
    if not path.exists():
        raise UserError(
            f"{socket.gethostname()} has no file {path}; what `ray up` did not bring to a cluster, `ray rsync-up` does"
        )
    tree = read_yaml(path, SpaceConfig.meaning)
    if isinstance(tree.get("space"), dict):
        tree = {**tree, "space": dict(_dotted(tree["space"]))}
    return SpaceConfig.parse({"name": path.stem, **tree}, str(path))


def _dotted(space: Tree, above: str = "") -> Iterator[tuple[str, Any]]:
    """Domains by dotted path, where a file has sections in sections; those hold nothing but sections and domains."""
    for key, node in space.items():
        inside = isinstance(node, dict) and node and all(isinstance(each, dict) for each in node.values())
        inside = inside and not node.keys() & DomainConfig.model_fields
        yield from _dotted(node, f"{above}{key}.") if inside else [(f"{above}{key}", node)]
