"""What there is to train: methods with their presets, data sets, settings; and what a round would take.

Floor 9.
"""

import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from avb_service import rows, tables
from avb_service.results import Listing, Plan

if TYPE_CHECKING:
    from avb_service.service.training import Settings
    from avb_service.settings import ExperimentConfig


def methods() -> Listing:
    """The methods: what each can do, and the presets that train it."""
    from avb_service.abilities import abilities
    from avb_service.algorithms import TABLE
    from avb_service.settings import preset_names, read_preset

    presets: dict[str, list[str]] = {name: [] for name in TABLE}
    for preset in preset_names():
        presets[read_preset(preset)["algorithm"]["name"]].append(preset)
    listed = (
        {
            "name": name,
            "about": (sys.modules[method.__module__].__doc__ or "").split("\n")[0],
            **asdict(abilities(method)),
            "presets": presets[name],
        }
        for name, method in TABLE.items()
    )
    return Listing(tuple(listed), tables.methods)


def datasets() -> Listing:
    """The data sets that have a name."""
    from avb_service.data.sources import SOURCES

    listed = ({"name": name, "about": source.about, "values": source.values} for name, source in SOURCES.items())
    return Listing(tuple(listed), tables.datasets)


def settings(source: "str | Path | ExperimentConfig", changes: "Settings" = ()) -> Listing:
    """All settings: the path by which each is changed, its value, and what it is.

    Args:
        source: a preset, a YAML file, or a configuration.
        changes: on top of it.

    Raises:
        UserError: it cannot be read, or cannot be run.
    """
    from avb_service.settings import read_config

    found = read_config(source, changes).settings()
    listed = ({"setting": path, "value": value, "about": about} for path, value, about in found)
    return Listing(tuple(listed), partial(tables.settings, title=f"Settings of {source}"))


def plan(
    source: "str | Path | ExperimentConfig",
    changes: "Settings" = (),
    *,
    workers: int = 1,
    gpus: bool = False,
    bandwidth: float | None = None,
) -> Plan:
    """How long a round would take on 1, 2, ... workers, and how many pay: measured here, with one.

    Args:
        source: a preset, a YAML file, or a configuration.
        changes: on top of it.
        workers: at the most; needs as many `training.logical_workers`.
        gpus: whether each has a GPU; one of this machine is measured.
        bandwidth: of the network, Gbit/s, where each is on a host of its own.

    Raises:
        UserError: more workers than logical ones, or a device that is not here.
    """
    from avb_service.plan import enough, measure, shares
    from avb_service.plan import plan as predict
    from avb_service.settings import read_config

    config = read_config(source, changes)
    shares(config, workers)
    costs = measure(config, gpus)
    planned = predict(config, costs, workers, None if bandwidth is None else bandwidth * 1e9 / 8)
    listed = tuple(rows.planned(each, config.training.rounds) for each in planned)
    return Plan(f"A round of {source}", listed, enough(planned), costs.bytes)
