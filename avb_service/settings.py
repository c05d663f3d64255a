"""The whole configuration of an experiment, and where it is read from.

Floor 6.
"""

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib.metadata import EntryPoint
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import AfterValidator, Field

from avb_service.algorithm import AlgorithmConfig
from avb_service.algorithms import METHODS
from avb_service.config import Config
from avb_service.data.datasets import DataConfig
from avb_service.errors import UserError
from avb_service.faults import nearest
from avb_service.kinds import OneOf, Table
from avb_service.likelihood import LikelihoodConfig
from avb_service.scaling import ScalingConfig
from avb_service.training.config import TrainingConfig
from avb_service.trees import Tree, flatten, must_match, overridden, override, read_yaml

_log = logging.getLogger(__name__)

RENAMED = {"tracking.figures_every": "plots_every", "algorithm.distortion": "augmentation"}  # what is new of the names

# Where and how fast, not what: a run may be continued with other values of these.
CIRCUMSTANCES = ("data.root", "data.resident_gib", "data.download")
# What the estimate that is reported in training depends on, by which the best checkpoint and the best trial are chosen.
# All else of its section scores a model that has been trained, and may be another when it is scored again.
OF_OBJECTIVE = ("importance_draws", "proposal_draws", "inflate", "search", "validation_data", "seed")
OF_OTHER = tuple(path.replace("data.", "data.other.") for path in CIRCUMSTANCES if path.startswith("data."))


@cache
def say_renamed(path: str, new: str) -> None:
    """Tell of a setting that was called otherwise, once in a process."""
    _log.warning("the setting %s is called %s now; it is understood all the same", path, new)


def _folder_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
        raise ValueError("letters, digits, _ - and ., a letter or digit first")
    return name


def _registrable(name: str) -> str:
    if not re.fullmatch(r"(?!\s)[^/:.%@?\"'\x00-\x1f\x7f]{1,256}(?<!\s)", name):
        raise ValueError(
            "a name, such as avb-digits, with none of / : . % @ ? and quotation marks, no blank at its ends, and 256 "
            "characters at most: MLflow refuses others, or does not find their models again"
        )
    return name


FolderName = Annotated[str, AfterValidator(_folder_name)]  # of what is kept in a folder of its own
ModelName = Annotated[str, AfterValidator(_registrable)]


class TrackingConfig(Config):
    """Under which names the run is recorded, and how often it is drawn.

    Attributes:
        experiment: MLflow's experiment.
        model: name in the registry.
        plots_every: reports between two sets of plots; the last report is always drawn.
    """

    experiment: Annotated[str, Field(min_length=1, max_length=256)] = "avb"
    model: ModelName = "avb"
    plots_every: Annotated[int, Field(ge=1)] = 4


class ExperimentConfig(Config):
    """Everything that a run depends on.

    Attributes:
        algorithm: the method.
        data: what it learns from.
        training: how long, how large, from which seed.
        likelihood: how log-likelihoods are estimated.
        tracking: under which names it is recorded.
        scaling: how many workers train it.
    """

    algorithm: Annotated[AlgorithmConfig, OneOf(METHODS, lambda method: method.Config)]
    data: DataConfig
    training: TrainingConfig = TrainingConfig()
    likelihood: LikelihoodConfig = LikelihoodConfig()
    tracking: TrackingConfig = TrackingConfig()
    scaling: ScalingConfig = ScalingConfig()

    @classmethod
    def parse(cls, tree: Mapping[str, Any], source: str = "configuration", found: Sequence[str] = ()) -> Self:
        """As `Config.parse`; settings by the names that they had in earlier releases are understood, and it is said."""
        for path, new in RENAMED.items():
            section, _, old = path.partition(".")
            given = tree.get(section)
            if isinstance(given, Mapping) and old in given and new not in given:
                say_renamed(path, f"{section}.{new}")
                tree = {**tree, section: {new if key == old else key: value for key, value in given.items()}}
        return super().parse(tree, source, found)

    def problems(self) -> Iterator[str]:
        """Sections that are sound by themselves and do not go together."""
        yield from super().problems()
        values = self.data.values
        if values is not None and (objection := self.algorithm.objection(values)):
            yield f"algorithm.{objection}" + (" or data.binarisation: none" if self.data.binarisation != "none" else "")
        if self.algorithm.two_sources and self.data.other is None:
            yield f"data.other: {self.algorithm.name} translates between two sources; name the second"
        if self.data.other is not None and not self.algorithm.two_sources:
            yield f"data.other: {self.algorithm.name} learns from one source; leave it out"
        if self.training.logical_workers % self.scaling.workers:
            yield (
                f"scaling.workers: {self.scaling.workers} do not divide training.logical_workers "
                f"{self.training.logical_workers}; each worker plays an equal share of the logical ones"
            )

    def anchored(self) -> "ExperimentConfig":
        """The same with absolute paths to the data: workers run in directories of their own."""
        return self.model_copy(update={"data": self.data.anchored()})

    def subject(self, round_: int | None = None) -> str:
        """The model in words, for plots: its method, of which data, how many latents, after how many rounds."""
        data = [
            Path(each.path).name if each.path else each.name
            for each in (self.data, self.data.other)
            if each is not None
        ]
        latents = getattr(self.algorithm, "latent_dim", None)
        size = None if latents is None else f"{latents} latent{'' if latents == 1 else 's'}"
        when = None if round_ is None else f"round {round_}"
        return ", ".join(filter(None, (f"{self.algorithm.name} of {' and '.join(data)}", size, when)))

    def identity(self) -> Tree:
        """The part that decides what is trained, and which state of it is the best; see `identity_of`."""
        return identity_of(self.tree())

    def bound_to_the_end(self) -> list[str]:
        """Settings by which a round depends on how many there are in all, as `path: value`."""
        leaves = flatten(self.tree()["algorithm"])
        found = [(path, value) for path, value in leaves.items() if path.endswith("schedule.decay")]
        return [f"algorithm.{path}: {value}" for path, value in found if value != "none"]


def identity_of(tree: Tree) -> Tree:
    """The part of a configuration that decides what is trained, and which state of it is the best.

    Not where it runs, how fast, under which name, or how the trained model is scored.

    Args:
        tree: a configuration, or what an earlier version took for this part of one.
    """
    kept = {key: tree[key] for key in ("algorithm", "data", "training")}
    for path in CIRCUMSTANCES + (OF_OTHER if tree["data"].get("other") else ()):
        kept = override(kept, path, None)
    return {**kept, "likelihood": {key: tree["likelihood"].get(key) for key in OF_OBJECTIVE}}


def check_continues(before: ExperimentConfig, now: ExperimentConfig, claim: str, remedy: str) -> None:
    """Make sure that a run which was begun with one configuration can go on with another: the same, or more rounds.

    Args:
        before: what it was begun with.
        now: what is given.
        claim: what a difference means.
        remedy: what to do.

    Raises:
        UserError: it cannot; has the differing lines, and what stands against more rounds.
    """
    old, new = before.identity(), now.identity()
    if now.training.rounds > before.training.rounds:
        if bound := now.bound_to_the_end():
            remedy = (
                f"More rounds would change those that were played, since the learning rate falls towards the last one "
                f"({', '.join(bound)}). {remedy}"
            )
        else:
            old = override(old, "training.rounds", now.training.rounds)
    must_match(old, new, claim, remedy)


def _file_of(point: EntryPoint) -> Path:
    """The file NAME.yaml in the folder of the package that the entry point NAME names; nothing is imported for it."""
    if point.attr:  # a thing in a module, and no folder
        return Path(point.value)
    first, *below = point.module.split(".")
    found = find_spec(first)
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError(f"No package named {first!r}")
    return Path(found.submodule_search_locations[0], *below, f"{point.name}.yaml")


PRESETS: Table[Path] = Table(
    "presets",
    {path.stem: path for path in sorted((Path(__file__).parent / "presets").glob("*.yaml"))},
    lambda name, found: None if found.is_file() else f"a package with the file {found}",
    _file_of,
)


def read_preset(source: str | Path) -> Tree:
    """The tree of a preset or of a YAML file.

    Raises:
        UserError: neither; names the nearest.
    """
    if str(source) in PRESETS:
        return read_yaml(PRESETS[str(source)], ExperimentConfig.meaning)
    if not Path(source).is_file():
        near = nearest(source, tuple(PRESETS))
        meant = f"; did you mean {' or '.join(near)}?" if near else ";"
        raise UserError(
            f"{source}: neither a file nor a preset{meant} `avb methods` lists all presets by their methods"
        )
    return read_yaml(Path(source), ExperimentConfig.meaning)


def read_config(
    source: "str | Path | ExperimentConfig", assignments: Mapping[str, Any] | Sequence[str] | None = None
) -> ExperimentConfig:
    """A preset, file or configuration, with settings on top.

    Args:
        source: as `read_preset` takes it, or a configuration.
        assignments: dotted path to value; or "PATH=VALUE" each, as `--set` takes them.

    Raises:
        UserError: the file cannot be read, or the configuration cannot be run.
    """
    tree = source.tree() if isinstance(source, ExperimentConfig) else read_preset(source)
    name = "settings" if isinstance(source, ExperimentConfig) else str(source)
    if isinstance(assignments, Mapping):
        return ExperimentConfig.parse(overridden(tree, assignments), name)
    if isinstance(assignments, str):
        raise UserError(
            f"settings: given {assignments!r}, expected a mapping of paths to values, or a list of PATH=VALUE"
        )
    tree, problems = ExperimentConfig.assigned(tree, list(assignments or []))
    return ExperimentConfig.parse(tree, name, problems)


def check_run_name(name: str) -> None:
    """Make sure that a name can be that of a folder, and stays in the folder where it is made.

    Raises:
        UserError: it is none.
    """
    try:
        _folder_name(name)
    except ValueError as error:
        raise UserError(f"--name: given {name!r}, expected {error}") from error


def read_likelihood(base: LikelihoodConfig, file: Path | None, budget: str | None) -> LikelihoodConfig:
    """A model's own `likelihood` section with a file's keys on top.

    Args:
        base: of the model.
        file: YAML, with keys of that section.
        budget: stands above the file's; where neither has one it is quick, whatever the model was trained with.

    Raises:
        UserError: the file cannot be read, or has keys or values that do not fit.
    """
    given = flatten(read_yaml(file, LikelihoodConfig.meaning) if file else {})
    asked = {} if budget is None else {"budget": budget}
    tree = overridden(base.tree(), {"budget": "quick", **given, **asked})
    return LikelihoodConfig.parse(tree, str(file or "likelihood"))
