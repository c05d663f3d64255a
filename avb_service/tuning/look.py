"""What a search has found, to look at: its trials as rows, which settings mattered, and plots. Knows no Ray.

Floor 9.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from avb_service.errors import UserError
from avb_service.formats import known_format
from avb_service.trees import read_yaml
from avb_service.tuning.description import given as drawn
from avb_service.tuning.description import of_seeds
from avb_service.tuning.record import SPACE
from avb_service.tuning.space import SpaceConfig
from avb_service.tuning.trials import TRIAL, Trial, means, ranked, read_trials

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from avb_service.figures.searches import Tried

TREES = 200
FEW = 4  # trials, below which nobody can say what mattered


def read_search(folder: Path) -> SpaceConfig:
    """The space that a search was begun with, as its folder has it; it is not tried out again.

    Raises:
        UserError: a later release wrote it.
    """
    tree = read_yaml(folder / SPACE)
    known_format(tree, folder / SPACE)
    return SpaceConfig.begun_with(tree)


def rows(space: SpaceConfig, trials: Sequence[Trial], published: Mapping[str, str]) -> list[dict[str, Any]]:
    """The trials, best first, as plain values.

    Args:
        space: what is searched.
        trials: that have begun.
        published: address of the model of each that is registered.
    """
    by_setting = means(trials)
    return [
        {
            "trial": trial.job.name,
            "method": trial.config.algorithm.name,
            "objective": trial.objective,
            **of_seeds(space, by_setting[trial.job.folder]),
            "status": trial.status,
            "rounds": trial.rounds,
            "train_seconds": trial.seconds,
            "settings": [{"setting": path, "value": value} for path, value in drawn(space, trial).items()],
            "model": published.get(trial.job.name),
        }
        for trial in ranked(space.seeds, trials)
    ]


def find_search(name: str, storage: Path) -> Path:
    """The folder of a search, by its own name or by that of its space, of which the newest is meant.

    Raises:
        UserError: there is none; lists those that there are.
    """
    known = sorted(path.parent for path in storage.absolute().glob(f"*/{SPACE}"))
    for folder in reversed(known):
        if folder.name == name or folder.name.rpartition("-")[0].rpartition("-")[0] == name:
            return folder
    there = ", ".join(folder.name for folder in known) or "none"
    raise UserError(f"{storage.absolute()} holds no search {name!r}; there are: {there}. --storage names another place")


def begun(folder: Path) -> list[Trial]:
    """The trials of a search, in the order in which they were begun; baselines are none."""
    return [trial for trial in read_trials(folder) if trial.stage == TRIAL]


def importances(space: SpaceConfig, trials: Sequence["Tried"]) -> dict[str, float]:
    """Share of the objective's variance that each searched setting explains, by path; they add up to 1.

    By a forest of regression trees on the ranks of the objective, so that trials which did not learn at all do not
    decide; the importances are those of its splits (Breiman 2001). NaN where there are too few trials.
    """
    from scipy.stats import rankdata
    from sklearn.ensemble import RandomForestRegressor

    reached = [trial for trial in trials if trial.objective is not None]
    paths = [path for path in space.space if any(path in trial.settings for trial in reached)]
    if len(reached) < FEW or not paths:
        return dict.fromkeys(space.space, float("nan"))
    columns = [[trial.settings.get(path) for trial in reached] for path in paths]
    coded = np.array([_coded(column) for column in columns]).T
    forest = RandomForestRegressor(TREES, random_state=0)
    forest.fit(coded, rankdata([trial.objective for trial in reached]))
    return dict(zip(paths, map(float, forest.feature_importances_), strict=True))


def _coded(column: Sequence[Any]) -> list[float]:
    """Numbers as they are; anything else by its place among those that occur."""
    names = sorted({str(value) for value in column})
    numeric = all(isinstance(value, int | float) for value in column)
    return [float(value) if numeric else float(names.index(str(value))) for value in column]


def tried(space: SpaceConfig, trials: Sequence[Trial]) -> "list[Tried]":
    """What plots show of trials."""
    from avb_service.figures.searches import Tried

    return [
        Tried(
            trial.objective,
            trial.curve,
            drawn(space, trial),
            trial.seconds_alive * trial.cores,
            trial.seconds * trial.cores,
        )
        for trial in trials
    ]


def plots(space: SpaceConfig, trials: "Sequence[Tried]") -> "dict[str, Figure]":
    """All plots of a search by name; what cannot be drawn of so few trials is left out.

    Args:
        space: what is searched.
        trials: in the order in which they were begun.
    """
    from avb_service.figures import searches

    logarithmic = [path for path, domain in space.space.items() if domain.logarithmic]
    found = {
        "rounds": searches.rounds(trials),
        "progress": searches.progress(trials),
        "time": searches.spent(trials),
    }
    shares = {path: share for path, share in importances(space, trials).items() if not np.isnan(share)}
    if shares:
        found["settings"] = searches.settings(trials, shares, logarithmic)
    if len(shares) > 1:
        first, second, *_ = sorted(shares, key=lambda path: -shares[path])
        found["pair"] = searches.pair(trials, first, second, logarithmic)
    return found
