"""What a search shows of itself in MLflow: a description, and a table of its trials.

Floor 9.
"""

import json
import math
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from avb_service.tracking.publish import Published
from avb_service.tuning.space import SpaceConfig
from avb_service.tuning.trials import TRIAL, Mean, Trial, means

CELL = float | int | str


def command() -> str:
    """The line that began the search, as it would be given again."""
    program, *words = sys.argv
    return shlex.join([Path(program).name, *(word for word in words if word not in ("--resume", "--json"))])


def description(space: SpaceConfig, folder: Path, trials: Sequence[Trial], published: Mapping[str, Published]) -> str:
    """Of a search, for its page, Markdown.

    Args:
        space: what is searched.
        folder: of the search.
        trials: that have begun, best first.
        published: those that are registered, by trial.
    """
    settings = ", ".join(f"`{path}` = {value}" for path, value in space.set.items())
    lines = [
        f"{space.trials} trials of {', '.join(space.presets)}, suggested by {space.searcher.name}, "
        f"{space.scheduler.about()}, compared by `{space.objective.metric}`"
        + (f", the mean of {space.seeds} seeds" if space.seeds > 1 else "")
        + (f", within {space.budget.minutes:g} minutes" if space.budget else "")
        + (f"; beside them, {', '.join(space.baselines)}" if space.baselines else "")
        + (f". For all of them, {settings}" if settings else "")
        + ". Searched:",
        "",
        *(f"- `{path}`: {domain}" for path, domain in space.space.items()),
        "",
        "```",
        command(),
        "```",
        "",
        f"`--resume` continues it. What is kept is in `{folder}`; each trial is a run below this one.",
    ]
    best = next((trial for trial in trials if trial.stage == TRIAL and trial.objective is not None), None)
    if best is not None:
        drawn = ", ".join(f"`{path}` = {value}" for path, value in given(space, best).items())
        mean = means(trials)[best.job.folder]
        error = (
            "" if mean.error is None else f" (its setting {mean.objective:.2f} ± {mean.error:.2f}, {mean.seeds} seeds)"
        )
        lines += ["", f"Best trial on validation data: **{best.job.name}**, {best.objective:.2f}{error}, with {drawn}."]
    for name, model in published.items():
        lines += ["", f"**{model.uri}** is {name}, {model.alias or 'no candidate'}: {model.reason}."]
    if trials:
        lines += ["", "All trials are in the table `trials` (Artifacts, tables/trials.json)."]
    return "\n".join(lines)


def table(space: SpaceConfig, trials: Sequence[Trial], published: Mapping[str, Published]) -> dict[str, Sequence[CELL]]:
    """The trials by columns, best first: how each ended, how far it came, what was searched, its model.

    Args:
        space: what is searched.
        trials: that have begun, best first.
        published: those that are registered, by trial.
    """
    by_setting = means(trials)
    rows = [
        {
            "trial": trial.job.name,
            "stage": trial.stage,
            "method": trial.config.algorithm.name,
            space.objective.metric: math.nan if trial.objective is None else trial.objective,
            **of_seeds(space, by_setting[trial.job.folder]),
            "status": trial.status,
            "rounds": trial.rounds,
            "train_seconds": trial.seconds,
            **{path: given(space, trial).get(path, "") for path in space.space},
            "model": published[trial.job.name].uri if trial.job.name in published else "",
        }
        for trial in trials
    ]
    return {name: [row[name] for row in rows] for name in rows[0]} if rows else {}


def given(space: SpaceConfig, trial: Trial) -> dict[str, CELL]:
    """What was drawn for a trial, by path; lists and sections as text."""
    return {
        path: value if isinstance(value, CELL) else json.dumps(value)
        for path, value in space.searched(trial.config).items()
    }


def of_seeds(space: SpaceConfig, mean: Mean) -> dict[str, CELL]:
    """What a setting has reached with its seeds, for a table; nothing where there is one seed."""
    if space.seeds == 1:
        return {}
    numbers = {"mean": mean.objective, "error": mean.error}
    return {**{key: math.nan if value is None else value for key, value in numbers.items()}, "seeds": mean.seeds}
