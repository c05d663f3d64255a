"""What there is to train: methods with their presets, data sets, settings; and what a round would take.

Floor 9.
"""

import sys
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from avb_service import rows, tables
from avb_service.errors import UserError
from avb_service.results import Plan
from avb_service.shown import Listing
from avb_service.trees import child, read_yaml

if TYPE_CHECKING:
    from avb_service.service.training import Settings
    from avb_service.settings import ExperimentConfig


def methods(name: str | None = None) -> Listing:
    """The methods: what each can do, and the presets that train it.

    Those of other packages are imported when they are named; before, nobody knows what they can do.

    Args:
        name: this one alone.

    Raises:
        UserError: there is none of that name, or its package cannot be used.
    """
    from avb_service.algorithms import METHODS
    from avb_service.faults import nearest

    if name is not None and name not in METHODS:
        near = nearest(name, tuple(METHODS))
        meant = f"; did you mean {' or '.join(near)}?" if near else ""
        raise UserError(f"no method {name!r}{meant}; there are {', '.join(METHODS)}")
    presets = _presets_of_methods()
    asked = METHODS if name is None else (name,)
    listed = (_method(each, presets.get(each, []), each in METHODS.own or each == name) for each in asked)
    return Listing(tuple(listed), tables.methods)


def _method(name: str, presets: list[str], known: bool) -> rows.Row:
    """A line of the list.

    Args:
        name: of the method.
        presets: that train it.
        known: whether what it can do is to be found out, by importing it.
    """
    from avb_service.abilities import Abilities, abilities
    from avb_service.algorithms import METHODS

    origin = None if name in METHODS.own else METHODS.origin(name)
    if known:
        method = METHODS[name] if origin else METHODS.own[name]
        about, can = (sys.modules[method.__module__].__doc__ or "").split("\n")[0], asdict(abilities(method))
    else:
        about, can = f"`avb methods {name}` tells what it can do.", dict.fromkeys(Abilities.__dataclass_fields__)
    return {"name": name, "about": about, **can, "presets": presets, "package": origin and str(origin)}


def _presets_of_methods() -> dict[str, list[str]]:
    """Names of presets by the method that they train; those that cannot be read are left out."""
    from avb_service.settings import PRESETS

    found: dict[str, list[str]] = {}
    for preset in PRESETS:
        with suppress(UserError):
            method = child(child(read_yaml(PRESETS[preset]), "algorithm"), "name")
            found.setdefault(str(method), []).append(preset)
    return found


def datasets() -> Listing:
    """The data sets that have a name; those of other packages are imported when they are used."""
    from avb_service.data.sources import SOURCES

    listed = []
    for name in SOURCES:
        ours, origin = SOURCES.own.get(name), SOURCES.origin(name)
        about, values = (ours.about, ours.values) if ours else ("known when it is used", None)
        listed.append({"name": name, "about": about, "values": values, "package": origin and str(origin)})
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
