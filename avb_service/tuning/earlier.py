"""Trials of an earlier search, to learn from.

Floor 9.
"""

from pathlib import Path
from typing import Any, NamedTuple

from avb_service.errors import UserError
from avb_service.trees import difference
from avb_service.tuning.checks import footing
from avb_service.tuning.look import begun, find_search, read_search
from avb_service.tuning.space import SpaceConfig
from avb_service.tuning.study import recognised


class Earlier(NamedTuple):
    """A trial of an earlier search.

    Attributes:
        name: of the search and the trial.
        values: what was drawn for it, dotted path to value.
        objective: that it has reached, nats per datum.
    """

    name: str
    values: dict[str, Any]
    objective: float


def earlier_trials(space: SpaceConfig, storage: Path) -> dict[str, list[Earlier]]:
    """What the search that a space names has found, by preset; nothing where it names none.

    Args:
        space: of the new search.
        storage: folder of all searches.

    Raises:
        UserError: there is none of that name, or its numbers say nothing about the new one's; names what differs.
    """
    if space.earlier is None:
        return {}
    folder = find_search(space.earlier, storage)
    before = read_search(folder)
    shared = [preset for preset in space.presets if preset in before.presets]
    if not shared:
        raise UserError(
            f"from: {folder.name} has trials of {', '.join(before.presets)}, and this search is of "
            f"{', '.join(space.presets)}; name one with a preset in common"
        )
    if lines := [line for preset in shared for line in difference(_ground(before, preset), _ground(space, preset))]:
        told = "\n  ".join(dict.fromkeys(lines))
        raise UserError(
            f"from: {folder.name} has searched something else, so its numbers say nothing here; differing:\n  {told}\n"
            "Give the same data, objective and domains, or leave out from"
        )
    found: dict[str, list[Earlier]] = {preset: [] for preset in shared}
    for trial in begun(folder):
        for preset in shared:
            values = recognised(before, preset, trial.job)
            if values is not None and trial.objective is not None:
                found[preset].append(Earlier(f"{folder.name}/{trial.job.folder.name}", values, trial.objective))
                break
    return found


def _ground(space: SpaceConfig, preset: str) -> dict[str, Any]:
    """What has to be the same for numbers to mean the same."""
    tree = space.tree()
    return {**footing(space.trial(preset)), "objective": tree["objective"], "space": tree["space"]}
