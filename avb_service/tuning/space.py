"""Search spaces: YAML that is checked to the last endpoint before anything is launched. Knows nothing of Ray.

Floor 9.
"""

import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations, product
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from avb_service.config import Config
from avb_service.errors import ConfigError, UserError
from avb_service.report import OBJECTIVE, OF_DRAWS, objective_of
from avb_service.settings import ExperimentConfig, FolderName, ModelName, read_preset
from avb_service.trees import Location, Tree, flatten, override, read_yaml


def _one_value(given: Any) -> Any:  # noqa: ANN401  whatever the YAML holds
    if isinstance(given, list | dict):
        raise ValueError("one value; to search among lists or sections, give a file with each as a preset")
    return given


Scalar = Annotated[bool | int | float | str, BeforeValidator(_one_value)]
COMPARABLE = (OBJECTIVE, OF_DRAWS)
LATENT = "algorithm.latent_dim"
FEW = 64  # values between the ends of a range that are tried one by one


class DomainConfig(Config):
    """What a path may be: one of several values, or a number from a range; exactly one of the fields.

    Attributes:
        choice: the values.
        uniform: the ends, between which all numbers are alike.
        loguniform: the ends, between which the logarithms of all numbers are alike.
        randint: the ends of whole numbers, the upper not among them.
    """

    choice: Annotated[tuple[Scalar, ...], Field(min_length=1)] | None = None
    uniform: tuple[float, float] | None = None
    loguniform: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]] | None = None
    randint: tuple[int, int] | None = None

    @model_validator(mode="after")
    def _one(self) -> "DomainConfig":
        if sum(value is not None for _, value in self) != 1:
            raise ValueError(f"exactly one of {', '.join(type(self).model_fields)}, such as {{choice: [1, 2, 5]}}")
        name, values = self.given()
        if name != "choice" and not values[0] < values[1]:
            raise ValueError(f"{name} with the lower end first")
        return self

    def given(self) -> tuple[str, tuple[Any, ...]]:
        """The field that is set, and its values or ends."""
        return next((name, value) for name, value in self if value is not None)

    def endpoints(self) -> tuple[Any, ...]:
        """Every value of a choice; both ends of a range."""
        name, values = self.given()
        return (values[0], values[1] - 1) if name == "randint" else values  # its upper end is exclusive

    def between(self) -> Sequence[int]:
        """The whole numbers between the ends, where they are few."""
        name, values = self.given()
        inner = range(values[0] + 1, values[1] - 1) if name == "randint" else ()
        return inner if len(inner) <= FEW else ()


class ASHAConfig(Config):
    """Asynchronous successive halving.

    Attributes:
        grace: reports before a trial may be stopped.
        reduction: of the trials that reach a rung, one in so many goes on.
    """

    grace: Annotated[int, Field(ge=1)] = 1
    reduction: Annotated[float, Field(gt=1)] = 3


class SchedulerConfig(Config):
    """How trials are stopped early.

    Attributes:
        asha: by halving; none of them where null.
    """

    asha: ASHAConfig | None = ASHAConfig()


class ObjectiveConfig(Config):
    """What trials are compared by.

    Attributes:
        metric: its name.
        mode: whether more of it is better.
    """

    metric: str = OBJECTIVE
    mode: Literal["max", "min"] = "max"

    def problems(self) -> Iterator[str]:
        """Only numbers that mean the same for every trial can rank them."""
        if self.metric not in COMPARABLE:
            yield (
                f"metric: {self.metric} is not comparable across trials: a training loss depends on the very settings "
                "that are searched, and an adversary's ELBO is as wrong as the adversary; "
                f"use {' or '.join(COMPARABLE)}"
            )
        elif self.mode != "max":
            yield f"mode: {self.mode} would look for the worst {self.metric}; use max"


class SpaceConfig(Config):
    """A search.

    Attributes:
        name: of the search; runs, checkpoints and what `--resume` looks for go by it.
        preset: where trials start from: a preset or file, or several to choose among.
        set: assignments that all trials and baselines share, dotted path to value.
        space: dotted path to domain.
        baselines: presets that are trained beside the search with the same settings and the best trial's latent size,
            to compare with.
        objective: what trials are compared by.
        trials: how many.
        concurrent: how many at a time, at most; as many as the cluster holds where not given.
        scheduler: early stopping.
        model: name in the registry.
        seed: of the search's draws.
    """

    name: FolderName
    preset: str | Annotated[tuple[str, ...], Field(min_length=1)]
    set: dict[str, Any] = {}
    space: dict[str, DomainConfig]
    baselines: tuple[str, ...] = ()
    objective: ObjectiveConfig = ObjectiveConfig()
    trials: Annotated[int, Field(ge=1)] = 16
    concurrent: Annotated[int, Field(ge=1)] | None = None
    scheduler: SchedulerConfig = SchedulerConfig()
    model: ModelName | None = None
    seed: Annotated[int, Field(ge=0)] = 0

    @field_validator("space")
    @classmethod
    def _something(cls, space: dict[str, DomainConfig]) -> dict[str, DomainConfig]:
        if not space:
            raise ValueError("what is searched, such as algorithm.model.lr: {loguniform: [1e-4, 1e-2]}")
        return space

    @property
    def presets(self) -> tuple[str, ...]:
        """Where trials start from."""
        return (self.preset,) if isinstance(self.preset, str) else self.preset

    @classmethod
    def kind_at(cls, location: Location, tree: Tree) -> Any:  # noqa: ANN401
        """What is assigned, or chosen among, is what the setting of that path is."""
        match location:
            case ("set", str(path), *below) | ("space", str(path), "choice", int(), *below):
                return ExperimentConfig.kind_at((*path.split("."), *below), {})
        return super().kind_at(location, tree)

    def bases(self) -> tuple[ExperimentConfig, ...]:
        """What trials and baselines start from, with the settings that they share."""
        return tuple(self.trial(preset) for preset in (*self.presets, *self.baselines))

    def trial(self, preset: str, values: Mapping[str, Any] | None = None) -> ExperimentConfig:
        """The configuration of a trial or baseline; its data's place is absolute, since workers run elsewhere.

        Raises:
            UserError: it cannot be run.
        """
        return ExperimentConfig.parse(self._tree(preset, values or {}), preset).anchored()

    def extremes(self, preset: str, section: str) -> Iterator[ExperimentConfig]:
        """Trials of a preset at all endpoints of what is searched in one section of the configuration."""
        domains = {path: each.endpoints() for path, each in self.space.items() if path.startswith(f"{section}.")}
        for values in product(*domains.values()):
            yield self.trial(preset, dict(zip(domains, values, strict=True)))

    def problems(self) -> Iterator[str]:
        """Try every preset by itself, then every endpoint of every domain, what is between, and every two together."""
        yield from super().problems()
        if twice := sorted({preset for preset in self.presets if self.presets.count(preset) > 1}):
            yield f"preset: {', '.join(twice)} is there twice; give each once, and more trials"
        if self.trials % len(self.presets):
            yield f"trials: {self.trials} are not divisible among {len(self.presets)} presets; give a multiple"
        broken = [line for preset in (*self.presets, *self.baselines) for line in self._tried(preset, {})]
        yield from broken
        if broken:
            return
        broken = (
            list(self._tried_together(1))
            or list(self._tried_together(1, DomainConfig.between))
            or list(self._tried_together(2))
        )
        yield from broken
        for preset, value in product(self.baselines, self.latent_sizes()):
            yield from (f"baselines: at {value} latents, {line}" for line in self._tried(preset, {LATENT: value}))
        yield from self._unlike()
        if not broken:
            yield from self._never_stopped()

    def latent_sizes(self) -> tuple[Any, ...]:
        """What the best trial's latent size can be, so far as it is searched."""
        domain = self.space.get(LATENT)
        return domain.endpoints() if domain else ()

    def packages(self) -> dict[str, str]:
        """Packages that its presets have chosen of, and their versions; without ours."""
        return {
            package: number
            for preset in (*self.presets, *self.baselines)
            for package, number in self.trial(preset).packages().items()
        }

    def resolved(self) -> Tree:
        """The space with the presets that it names, as they are now."""
        presets = {preset: self.trial(preset).identity() for preset in (*self.presets, *self.baselines)}
        return {**self.tree(), "resolved": presets}

    def _tried_together(
        self, together: int, values_of: Callable[[DomainConfig], Sequence[Any]] = DomainConfig.endpoints
    ) -> Iterator[str]:
        """What is wrong with endpoints, or others of the values, alone or so many of them together; a reason once."""
        told: set[tuple[Any, ...]] = set()
        for preset, domains in product(self.presets, combinations(self.space.items(), together)):
            for values in product(*(values_of(domain) for _, domain in domains)):
                given = {path: value for (path, _), value in zip(domains, values, strict=True)}
                where = " and ".join(f"space.{path}: at {value!r}" for path, value in given.items())
                for line in self._tried(preset, given):
                    if (reason := (*given, line)) not in told:
                        told.add(reason)
                        yield f"{where} with {line}"

    def _never_stopped(self) -> Iterator[str]:
        """Where a trial would end before it may be stopped early."""
        if (asha := self.scheduler.asha) is None:
            return
        for preset in self.presets:
            last, every = self.rounds(preset)
            reports = -(-last // every)
            if asha.grace > reports:
                yield (
                    f"scheduler.asha.grace: {asha.grace} reports, and a trial of {preset} makes "
                    f"{reports} (training.rounds {last}, report_every {every}): none could be stopped early; give "
                    "fewer, or asha: null"
                )

    def rounds(self, preset: str) -> tuple[int, int]:
        """Rounds of the longest trial of a preset, and the most that lie between two reports."""
        trainings = [config.training for config in self.extremes(preset, "training")]
        return max(each.rounds for each in trainings), max(each.report_every for each in trainings)

    def _tried(self, preset: str, values: Mapping[str, Any]) -> Iterator[str]:
        """What is wrong with a trial."""
        try:
            config = self.trial(preset, values)
        except UserError as error:
            problems = error.problems if isinstance(error, ConfigError) else [str(error)]
            yield from (f"{preset}: {problem.removeprefix(f'{preset}: ')}" for problem in problems)
            return
        comparable = objective_of(config.algorithm.name)
        if self.objective.metric in COMPARABLE and self.objective.metric != comparable:
            yield (
                f"{preset}: {config.algorithm.name} is compared by {comparable}, not by objective.metric "
                f"{self.objective.metric}; methods of the two kinds cannot be searched together"
            )

    def _unlike(self) -> Iterator[str]:
        """Where two trials would be scored on other data, or by another measure, so that nothing ranks them."""
        first = flatten(_footing(self.trial(self.presets[0])))
        others = (*self.presets[1:], *self.baselines)
        tried: list[tuple[str, str, dict[str, Any]]] = [(preset, preset, {}) for preset in others]
        tried += [
            (f"space.{path}: at {value!r}", preset, {path: value})
            for preset, (path, domain) in product(self.presets, self.space.items())
            for value in domain.endpoints()
        ]
        found: dict[str, None] = {}
        for where, preset, values in tried:
            try:
                footing = flatten(_footing(self.trial(preset, values)))
            except UserError:
                continue  # a line of its own says why
            lines = [f"{key} {footing.get(key)!r}" for key in first | footing if first.get(key) != footing.get(key)]
            if lines:
                found[
                    f"{where} has {', '.join(lines)}, and {self.presets[0]} has not: numbers of other data, or of "
                    "another measure, rank nothing; give all trials the same"
                ] = None
        yield from found

    def _tree(self, preset: str, values: Mapping[str, Any]) -> Tree:
        tree = read_preset(preset)
        shared = {"tracking.model": self.model} if self.model and preset in self.presets else {}
        for path, value in {**shared, **self.set, **values}.items():
            tree = override(tree, path, value)
        return tree


def _footing(config: ExperimentConfig) -> Tree:
    """What the numbers of trials depend on beside the models: the data that are scored, and what a number is of."""
    tree = config.identity()
    data = {key: value for key, value in tree["data"].items() if key != "limit"}
    fixed = {key: tree["likelihood"][key] for key in ("seed", "validation_data")}
    observation = getattr(config.algorithm, "observation", None)
    return {"data": data, "likelihood": fixed, "algorithm.observation": observation and observation.name}


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
