"""What is wrong with a search space: every preset, endpoint and pair of them is tried before anything is launched.

Floor 9.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations, product
from typing import Any

from avb_service.errors import ConfigError, UserError
from avb_service.faults import nearest
from avb_service.report import objective_of
from avb_service.settings import ExperimentConfig
from avb_service.trees import Tree, flatten
from avb_service.tuning.conditions import completed, decided_by, holds
from avb_service.tuning.domains import DomainConfig
from avb_service.tuning.section import COMPARABLE, LATENT, SEED, SpaceSection


def problems(space: SpaceSection) -> Iterator[str]:
    """Lines `path: what is wrong`, all of them, except what follows from another."""
    yield from _numbers(space)
    yield from (f"space.{line}" for line in space.searcher.objections(space.space))
    broken = [line for preset in (*space.presets, *space.baselines) for line in _tried(space, preset, {})]
    yield from broken
    if broken:
        return
    conditions = list(_conditions(space))
    yield from conditions
    if conditions:
        return
    broken = (
        list(_tried_together(space, 1))
        or list(_tried_together(space, 1, DomainConfig.between))
        or list(_tried_together(space, 2))
    )
    yield from broken
    yield from _start(space)
    for preset, value in product(space.baselines, space.latent_sizes()):
        yield from (f"baselines: at {value} latents, {line}" for line in _tried(space, preset, {LATENT: value}))
    yield from _unlike(space)
    if not broken:
        told = {line: preset for preset in space.presets for line in space.scheduler.objections(space.race(preset))}
        yield from (f"scheduler.{line}" for line in told)


def _numbers(space: SpaceSection) -> Iterator[str]:
    """What is wrong with how many there are."""
    if twice := sorted({preset for preset in space.presets if space.presets.count(preset) > 1}):
        yield f"preset: {', '.join(twice)} is there twice; give each once, and more trials"
    if space.trials % len(space.presets):
        yield f"trials: {space.trials} are not divisible among {len(space.presets)} presets; give a multiple"
    if len(space.start) > space.samples:
        yield f"start: {len(space.start)} settings for {space.samples} trials of each preset; give more trials"
    if space.seeds > 1 and SEED in space.space:
        yield f"seeds: {space.seeds} seeds for each setting, and space.{SEED} searches among seeds; leave out one"
    if space.earlier is not None and not space.searcher.learns:
        yield (
            f"from: {space.searcher.name} learns nothing from what {space.earlier} has tried; give searcher: tpe, or "
            "leave it out"
        )


def _conditions(space: SpaceSection) -> Iterator[str]:
    """Conditions on what is no setting, on each other in a circle, or that no trial can meet."""
    bases = {preset: space.trial(preset).tree() for preset in space.presets}
    known = {path for tree in bases.values() for path in (*flatten(tree), *_sections(tree))} | set(space.space)
    for path, domain in space.space.items():
        where = f"space.{path}.when"
        if domain.when is None:
            continue
        if unknown := [key for key in domain.when if key not in known and decided_by(space.space, key) is None]:
            for key in unknown:
                near = nearest(key, tuple(known))
                yield f"{where}: {key} is no setting of these trials" + (
                    f"; did you mean {' or '.join(near)}?" if near else "; `avb settings` lists all"
                )
        elif _circle(space, path):
            yield f"{where}: depends on {path} itself, in a circle; leave out one of the conditions"
        elif not any(
            completed(space.space, base, {path: value}) for base in bases.values() for value in domain.endpoints()[:1]
        ):
            wanted = ", ".join(f"{key}: {value}" for key, value in domain.when.items())
            yield f"{where}: {wanted} is met by no trial, so it would never be searched; give values that occur"


def _sections(tree: Tree, above: str = "") -> Iterator[str]:
    for key, node in tree.items():
        if isinstance(node, Mapping):
            yield f"{above}{key}"
            yield from _sections(dict(node), f"{above}{key}.")


def _circle(space: SpaceSection, path: str) -> bool:
    seen: set[str] = set()
    waiting = [path]
    while waiting:
        for key in space.space[waiting.pop()].when or ():
            above = decided_by(space.space, key)
            if above == path:
                return True
            if above is not None and above not in seen:
                seen.add(above)
                waiting.append(above)
    return False


def _start(space: SpaceSection) -> Iterator[str]:
    """Settings to start with that are not in the space, or cannot be run."""
    for i, values in enumerate(space.start):
        lines = []
        for path, value in values.items():
            if (domain := space.space.get(path)) is None:
                near = nearest(path, tuple(space.space))
                lines.append(f"{path}: is not searched" + (f"; did you mean {' or '.join(near)}?" if near else ""))
            elif not domain.contains(value):
                lines.append(f"{path}: given {value!r}, expected what the space has, {domain}")
            elif not any(holds(domain, space.trial(preset).tree(), values) for preset in space.presets):
                lines.append(f"{path}: is searched only when {domain.when}; give that as well")
        if not lines:
            lines = [line for preset in space.presets for line in _tried(space, preset, values)]
        yield from (f"start.{i}.{line}" for line in lines)


def _tried_together(
    space: SpaceSection, together: int, values_of: Callable[[DomainConfig], Sequence[Any]] = DomainConfig.endpoints
) -> Iterator[str]:
    """What is wrong with endpoints, or others of the values, alone or so many of them together; a reason once."""
    told: set[tuple[Any, ...]] = set()
    for preset, domains in product(space.presets, combinations(space.space.items(), together)):
        for values in product(*(values_of(domain) for _, domain in domains)):
            given = {path: value for (path, _), value in zip(domains, values, strict=True)}
            if (whole := space.completed(preset, given)) is None:
                continue
            where = " and ".join(f"space.{path}: at {value!r}" for path, value in given.items())
            for line in _tried(space, preset, whole):
                if (reason := (*given, line)) not in told:
                    told.add(reason)
                    yield f"{where} with {line}"


def _tried(space: SpaceSection, preset: str, values: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with a trial."""
    try:
        config = space.trial(preset, values)
    except UserError as error:
        found = error.problems if isinstance(error, ConfigError) else [str(error)]
        yield from (f"{preset}: {problem.removeprefix(f'{preset}: ')}" for problem in found)
        return
    comparable = objective_of(config.algorithm.name)
    if space.objective.metric in COMPARABLE and space.objective.metric != comparable:
        yield (
            f"{preset}: {config.algorithm.name} is compared by {comparable}, not by objective.metric "
            f"{space.objective.metric}; methods of the two kinds cannot be searched together"
        )


def _unlike(space: SpaceSection) -> Iterator[str]:
    """Where two trials would be scored on other data, or by another measure, so that nothing ranks them."""
    first = flatten(footing(space.trial(space.presets[0])))
    others = (*space.presets[1:], *space.baselines)
    tried: list[tuple[str, str, Mapping[str, Any]]] = [(preset, preset, {}) for preset in others]
    tried += [
        (f"space.{path}: at {value!r}", preset, whole)
        for preset, (path, domain) in product(space.presets, space.space.items())
        for value in domain.endpoints()
        if (whole := space.completed(preset, {path: value})) is not None
    ]
    found: dict[str, None] = {}
    for where, preset, values in tried:
        try:
            other = flatten(footing(space.trial(preset, values)))
        except UserError:
            continue  # a line of its own says why
        lines = [f"{key} {other.get(key)!r}" for key in first | other if first.get(key) != other.get(key)]
        if lines:
            found[
                f"{where} has {', '.join(lines)}, and {space.presets[0]} has not: numbers of other data, or of "
                "another measure, rank nothing; give all trials the same"
            ] = None
    yield from found


def footing(config: ExperimentConfig) -> Tree:
    """What the numbers of trials depend on beside the models: the data that are scored, and what a number is of."""
    tree = config.identity()
    data = {key: value for key, value in tree["data"].items() if key != "limit"}
    fixed = {key: tree["likelihood"][key] for key in ("seed", "validation_data")}
    observation = getattr(config.algorithm, "observation", None)
    return {"data": data, "likelihood": fixed, "algorithm.observation": observation and observation.name}
