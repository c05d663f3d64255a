"""Whether this Python has what the project needs; names what is missing and exits with 1 where it has not."""

import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def missing(pyproject: Path) -> list[str]:
    """The requirements that are not met."""
    import tomllib

    from packaging.requirements import Requirement

    lacks = []
    for line in tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]["dependencies"]:
        need = Requirement(line)
        try:
            met = need.specifier.contains(version(need.name), prereleases=True)
        except PackageNotFoundError:
            met = False
        lacks += [] if met else [line]
    return lacks


if __name__ == "__main__":
    try:
        lacks = missing(Path(__file__).parents[1] / "pyproject.toml")
    except ImportError as error:
        lacks = [error.name or str(error)]
    if lacks:
        sys.exit(f"{sys.executable} lacks {', '.join(lacks)}")
