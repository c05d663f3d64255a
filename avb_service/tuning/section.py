"""The section of a search space: what may be given, and the trials that it means. Knows nothing of Ray.

Floor 9.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Annotated, Any, Literal, Self

from pydantic import Field, create_model, field_validator

from avb_service.config import Config
from avb_service.errors import ConfigError
from avb_service.faults import validated
from avb_service.kinds import TAG, OneOf, Table
from avb_service.report import OBJECTIVE, OF_DRAWS
from avb_service.settings import ExperimentConfig, FolderName, ModelName, read_preset
from avb_service.trees import Location, Tree, overridden
from avb_service.tuning.conditions import completed, holds, in_order, of_choice, sections_first, stands
from avb_service.tuning.domains import DomainConfig, as_others_say
from avb_service.tuning.schedulers import SCHEDULERS, ASHAConfig, Race, Scheduler
from avb_service.tuning.searchers import SEARCHERS, RandomConfig, Searcher

COMPARABLE = (OBJECTIVE, OF_DRAWS)
LATENT, SEED = "algorithm.latent_dim", "training.seed"


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


class BudgetConfig(Config):
    """When a search has to end.

    Attributes:
        minutes: of training, of all trials and baselines; time between an interruption and `--resume` is none.
    """

    minutes: Annotated[float, Field(gt=0)] = 60


# A word of Python's, that no class can have as a field in writing.
_From: type[Config] = create_model(  # type: ignore[call-overload]
    "_From",
    __base__=Config,
    __doc__="""What a search begins with.

    Attributes:
        from: an earlier search in the same place, whose trials a searcher learns from.
    """,
    **{"from": (FolderName | None, None)},
)


class SpaceSection(_From):  # type: ignore[misc, valid-type]
    """A search, of which nothing was tried out yet; see `space.SpaceConfig`.

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
        searcher: who says which setting is tried next.
        scheduler: early stopping.
        start: settings to try first, dotted path to value each; the preset's own comes before them, where it is in the
            space.
        seeds: with how many seeds a setting is trained that was not stopped early; its mean ranks it then.
        budget: when it has to end, whatever is left; never by default.
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
    searcher: Annotated[Searcher, OneOf(SEARCHERS)] = RandomConfig()
    scheduler: Annotated[Scheduler, OneOf(SCHEDULERS)] = ASHAConfig()
    start: tuple[dict[str, Any], ...] = ()
    seeds: Annotated[int, Field(ge=1)] = 1
    budget: BudgetConfig | None = None
    model: ModelName | None = None
    seed: Annotated[int, Field(ge=0)] = 0

    @field_validator("space")
    @classmethod
    def _something(cls, space: dict[str, DomainConfig]) -> dict[str, DomainConfig]:
        if not space:
            raise ValueError("what is searched, such as algorithm.model.lr: {loguniform: [1e-4, 1e-2]}")
        return space

    @classmethod
    def parse(cls, tree: Mapping[str, Any], source: str = "configuration", found: Sequence[str] = ()) -> Self:
        """As `Config.parse`, of any spelling; domains of other tools are answered with ours."""
        tree, space = _spelled(tree), tree.get("space")
        if isinstance(space, Mapping):
            foreign = {path: said for path, given in space.items() if (said := as_others_say(given))}
            found = [*found, *(f"space.{path}: {said}" for path, said in foreign.items())]
            tree["space"] = {path: given for path, given in space.items() if path not in foreign}
            if foreign and not tree["space"]:
                raise ConfigError(found, source)
        return super().parse(tree, source, found)

    @classmethod
    def begun_with(cls, tree: Mapping[str, Any]) -> Self:
        """A space as a folder has it, of this release or of one before; it is not tried out again."""
        section = {key: each for key, each in _spelled(tree).items() if key in cls.model_fields}
        space: Self = validated(cls, section)
        return space

    @property
    def presets(self) -> tuple[str, ...]:
        """Where trials start from."""
        return (self.preset,) if isinstance(self.preset, str) else self.preset

    @property
    def earlier(self) -> str | None:
        """The search that it is to learn from."""
        return getattr(self, "from")

    @property
    def samples(self) -> int:
        """Settings that are tried of each preset."""
        return self.trials // len(self.presets)

    @classmethod
    def kind_at(cls, location: Location, tree: Tree) -> Any:  # noqa: ANN401
        """What is assigned, or chosen among, or asked for, is what the setting of that path is."""
        match location:
            case ("set" | "start", *_) if below := location[1:] if location[0] == "set" else location[2:]:
                return ExperimentConfig.kind_at((*str(below[0]).split("."), *below[1:]), {})
            case ("space", str(path), "choice", int(), *below):
                return ExperimentConfig.kind_at((*path.split("."), *below), {})
            case ("space", str(), "when", str(path), *below):
                return ExperimentConfig.kind_at((*path.split("."), *(each for each in below if each is str)), {})
        return super().kind_at(location, tree)

    def bases(self) -> tuple[ExperimentConfig, ...]:
        """What trials and baselines start from, with the settings that they share."""
        return tuple(self.trial(preset) for preset in (*self.presets, *self.baselines))

    def trial(self, preset: str, values: Mapping[str, Any] | None = None) -> ExperimentConfig:
        """The configuration of a trial or baseline; its data's place is absolute, since workers run elsewhere.

        Raises:
            UserError: it cannot be run.
        """
        shared = {"tracking.model": self.model} if self.model and preset in self.presets else {}
        tree = overridden(read_preset(preset), {**shared, **self.set, **sections_first(values or {})})
        return ExperimentConfig.parse(tree, preset).anchored()

    def extremes(self, preset: str, section: str) -> Iterator[ExperimentConfig]:
        """Trials of a preset at all endpoints of what is searched in one section of the configuration."""
        domains = {path: each for path, each in self.space.items() if path.startswith(f"{section}.")}
        ends = ([*each.endpoints(), *([None] if each.when else [])] for each in domains.values())
        for values in product(*ends):
            drawn = {path: value for path, value in zip(domains, values, strict=True) if value is not None}
            if (whole := self.completed(preset, drawn)) is not None:
                yield self.trial(preset, whole)

    def completed(self, preset: str, values: Mapping[str, Any]) -> dict[str, Any] | None:
        """Drawn values with what the conditions of theirs ask for besides; None where these cannot hold."""
        if not any(self.space[path].when for path in values):
            return dict(values)
        return completed(self.space, self.trial(preset).tree(), values)

    def drawing(self, preset: str) -> Iterator[tuple[str, DomainConfig, dict[str, Any]]]:
        """The domains of a trial, one after the other, with the values before; who asks adds what was drawn."""
        base = self.trial(preset).tree() if any(domain.when for domain in self.space.values()) else {}
        values: dict[str, Any] = {}
        for path in in_order(self.space):
            if holds(self.space[path], base, values):
                yield path, self.space[path], values

    def searched(self, config: ExperimentConfig) -> dict[str, Any]:
        """What was searched of a trial, and how it stands in its configuration, by path."""
        tree = config.tree()
        active = ((path, domain) for path, domain in self.space.items() if holds(domain, tree, {}))
        return {path: of_choice(domain, stands(path, tree, {})) for path, domain in active}

    def latent_sizes(self) -> tuple[Any, ...]:
        """What the best trial's latent size can be, so far as it is searched."""
        domain = self.space.get(LATENT)
        return domain.endpoints() if domain else ()

    def race(self, preset: str) -> Race:
        """What trials of a preset have in common."""
        trainings = [config.training for config in self.extremes(preset, "training")]
        return Race(
            self.objective.metric, max(each.rounds for each in trainings), max(each.report_every for each in trainings)
        )

    def packages(self) -> dict[str, str]:
        """Packages that it and its presets have chosen of, and their versions; without ours."""
        found = super().packages()
        for preset in (*self.presets, *self.baselines):
            found |= self.trial(preset).packages()
        return found

    def resolved(self) -> Tree:
        """The space with the presets that it names, as they are now."""
        presets = {preset: self.trial(preset).identity() for preset in (*self.presets, *self.baselines)}
        return {**self.tree(), "resolved": presets}


def _spelled(tree: Mapping[str, Any]) -> Tree:
    """Searcher and scheduler as sections, where a file has a name (`tpe`), or a name above settings (`asha: {}`)."""
    given = dict(tree)
    for key, table in (("searcher", SEARCHERS), ("scheduler", SCHEDULERS)):
        if key in given:
            given[key] = _section(given[key], table)
    return given


def _section(given: Any, table: Table[Any]) -> Any:  # noqa: ANN401  whatever the YAML holds
    if given is None or given == {"asha": None}:  # as scheduler
        return {TAG: "none"}
    if isinstance(given, str):
        return {TAG: given}
    if isinstance(given, Mapping) and len(given) == 1 and TAG not in given:
        ((name, below),) = given.items()
        if name in table and isinstance(below, Mapping | None):
            return {TAG: name, **(below or {})}
    return given
