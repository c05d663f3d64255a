"""What has been asked of a searcher, and what came of it: a study of Optuna for each preset, in the search's folder.

Floor 9. What lies in the folders of trials is the truth. A study that was lost, or a search of a release that had none,
is begun again from them, and what had begun in them is asked for first.
"""

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avb_service.errors import UserError
from avb_service.runs import JOB, Job
from avb_service.settings import ExperimentConfig
from avb_service.tuning.conditions import sections_first
from avb_service.tuning.searchers import GridConfig, draw_seed
from avb_service.tuning.section import SEED
from avb_service.tuning.space import SpaceConfig
from avb_service.tuning.trials import TRIAL

if TYPE_CHECKING:
    import optuna

LOGGER = logging.getLogger(__name__)
STUDIES = "studies.log"  # in the folder of a search
KEY, START, FROM = "trial", "start", "from"  # attributes of what is asked for
REPEATS = 64  # settings in a row that have been tried already, before a searcher is taken to have no other


@dataclass(frozen=True)
class Setting:
    """What is tried: a preset with values on top, trained once for each seed.

    Attributes:
        preset: where it starts from.
        values: dotted path to value, of what was drawn.
        configs: resolved, by the name of each trial's folder; a seed each.
        number: in the study; None where there is none.
    """

    preset: str
    values: Mapping[str, Any]
    configs: Mapping[str, ExperimentConfig]
    number: int | None = None

    def assignments(self, trial: str) -> dict[str, Any]:
        """What a trial has on top of its preset, dotted path to value."""
        seed = self.configs[trial].training.seed
        first = next(iter(self.configs))
        return sections_first(self.values if trial == first else {**self.values, SEED: seed})


def resolve(space: SpaceConfig, kind: str, preset: str, values: Mapping[str, Any], first: str | None = None) -> Setting:
    """Resolve what is tried.

    Args:
        space: what is searched.
        kind: `trial` or `baseline`.
        preset: where it starts from.
        values: that were drawn.
        first: the folder of the first seed, where that has another name than its configuration would give it.

    Raises:
        UserError: it cannot be run.
    """
    base = space.trial(preset, values)
    configs = {first or key_of(kind, base): base}
    for i in range(1, space.seeds):
        config = space.trial(preset, {**values, SEED: base.training.seed + i})
        configs[key_of(kind, config)] = config
    return Setting(preset, values, configs)


def key_of(kind: str, config: ExperimentConfig) -> str:
    """The name of a trial: a hash of what decides what is trained."""
    text = json.dumps([kind, config.identity()], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def recognised(space: SpaceConfig, preset: str, job: Job) -> dict[str, Any] | None:
    """The values that a trial was drawn with, where it is one of a preset, and of its first seed; else None."""
    if job.tags.get("avb.kind") != TRIAL:
        return None
    values = space.searched(job.config)
    try:
        mine = space.trial(preset, values).identity() == job.config.identity()
    except UserError:
        return None
    return values if mine and all(space.space[path].contains(value) for path, value in values.items()) else None


class Study:
    """The settings of a preset, as a searcher suggests them.

    Args:
        space: what is searched.
        preset: where they start from.
        folder: of the search, which nobody else writes to.
        earlier: trials of another search to learn from: name, values, objective.
    """

    kind = TRIAL

    def __init__(
        self,
        space: SpaceConfig,
        preset: str,
        folder: Path,
        earlier: Sequence[tuple[str, Mapping[str, Any], float]] = (),
    ) -> None:
        self.space, self.preset, self.folder = space, preset, folder
        self._study = _opened(folder / STUDIES, preset)
        self._place = space.presets.index(preset)
        for trial in self._in_state("RUNNING"):
            if KEY not in trial.user_attrs:  # one was killed while it was drawn; nothing can have begun
                self._study.tell(trial.number, state=_state("FAIL"))
        self._learn(earlier)
        self._find(folder / "trials")
        self._enqueue_start()

    def begun(self) -> Iterator[Setting]:
        """What was asked for and has not been told, in that order."""
        for trial in self._in_state("RUNNING"):
            values = self._values(trial)
            yield self._setting(values, trial.user_attrs[KEY], trial.number)

    def ask(self) -> Setting | None:
        """A setting that was not tried yet; None where there are enough, or no other.

        What a searcher suggests for the second time is told at once, with what it had reached.
        """
        for attempt in range(REPEATS):
            waiting = bool(self._in_state("WAITING"))
            if not waiting and len(self._keys) >= self.space.samples:
                return None
            self._study.sampler = self._sampler(attempt)
            trial = self._study.ask()
            values = self._values(trial)
            try:
                found = self._setting(values, trial.user_attrs.get(KEY), trial.number)
            except UserError as error:
                LOGGER.warning("another setting is drawn in the place of %s: %s", values, error)
                self._tell(trial.number, None)
                continue
            (key, *_) = found.configs
            if key not in self._keys or KEY in trial.user_attrs:
                trial.set_user_attr(KEY, key)
                self._keys[key] = None
                return found
            if (reached := self._keys[key]) is None:
                self._study.tell(trial.number, state=_state("FAIL"))  # nothing is learned from it
            else:
                self._tell(trial.number, reached)
        LOGGER.warning(
            "%s suggests only what has been tried, %d settings of %s; there will be no more",
            *(self.space.searcher.name, len(self._keys), self.preset),
        )
        return None

    @property
    def names(self) -> list[str]:
        """The folders of the first trials of all that was asked for."""
        return [*self._keys, *(key for trial in self._in_state("WAITING") if (key := trial.user_attrs.get(KEY)))]

    def tell(self, setting: Setting, objective: float | None) -> None:
        """What a setting has reached, nats per datum; None where it has not come so far."""
        assert setting.number is not None
        self._keys[next(iter(setting.configs))] = objective
        self._tell(setting.number, objective)

    @cached_property
    def _keys(self) -> dict[str, float | None]:
        """What was asked for so far, by the folder of its first trial, and what it has reached."""
        trials = self._study.get_trials(deepcopy=False)
        told = [trial for trial in trials if trial.state.name != "WAITING" and KEY in trial.user_attrs]
        return {trial.user_attrs[KEY]: trial.value for trial in told}

    def _sampler(self, attempt: int) -> "optuna.samplers.BaseSampler":
        """The searcher's; where it repeats itself and all settings can be counted, one that goes through the rest."""
        draw = draw_seed(self._place, len(self._keys), attempt)  # the same, where one was killed while it was drawn
        repeats = attempt >= REPEATS // 2 and all(domain.finite for domain in self.space.space.values())
        return (GridConfig() if repeats else self.space.searcher).sampler(self.space.seed, draw)

    def _values(self, trial: "optuna.trial.BaseTrial") -> dict[str, Any]:
        """What a trial of the study has, drawn where it is not yet."""
        found: dict[str, Any] = {}
        for path, domain, values in self.space.drawing(self.preset):
            found[path] = values[path] = domain.drawn(trial, path)
        return found

    def _setting(self, values: Mapping[str, Any], first: str | None, number: int) -> Setting:
        found = resolve(self.space, self.kind, self.preset, values, first)
        return Setting(found.preset, found.values, found.configs, number)

    def _tell(self, number: int, objective: float | None) -> None:
        from optuna.samplers import RandomSampler

        self._study.sampler = RandomSampler()  # that of a grid would stop a loop of Optuna's own
        if objective is None:
            self._study.tell(number, state=_state("PRUNED"))  # nothing known, and worse than all that has come so far
        else:
            self._study.tell(number, objective)

    def _in_state(self, *names: str) -> "list[optuna.trial.FrozenTrial]":
        return self._study.get_trials(deepcopy=False, states=tuple(map(_state, names)))

    def _learn(self, earlier: Iterable[tuple[str, Mapping[str, Any], float]]) -> None:
        """Tell of the trials of another search, those that are not told yet."""
        known = {trial.user_attrs.get(FROM) for trial in self._in_state("WAITING", "COMPLETE")}
        reached = {name: objective for name, _, objective in earlier}
        for name, values, _ in earlier:
            if name not in known:
                self._study.enqueue_trial(self._parameters(values), user_attrs={FROM: name})
        while any(FROM in trial.user_attrs for trial in self._in_state("WAITING")):
            trial = self._study.ask()
            self._values(trial)
            self._tell(trial.number, reached.get(trial.user_attrs[FROM]))

    def _find(self, trials: Path) -> None:
        """Ask again for what lies in folders and was not asked of this study."""
        known = {trial.user_attrs.get(KEY) for trial in self._in_state("WAITING")} | self._keys.keys()
        paths = sorted(trials.glob(f"*/{JOB}"), key=lambda path: path.stat().st_mtime)
        found = [path.parent for path in paths if path.parent.name not in known]
        for folder in found:
            if (values := recognised(self.space, self.preset, Job.read(folder))) is not None:
                self._study.enqueue_trial(self._parameters(values), user_attrs={KEY: folder.name})

    def _enqueue_start(self) -> None:
        """What is to be tried first: the preset's own setting where the space has it, then what was asked for."""
        own = self.space.searched(self.space.trial(self.preset))
        contained = all(self.space.space[path].contains(value) for path, value in own.items())
        wanted = [*([own] if contained else []), *self.space.start]
        states = self._in_state("WAITING", "RUNNING", "COMPLETE", "PRUNED")
        done = {trial.user_attrs.get(START) for trial in states}
        for i, values in enumerate(wanted):
            if i not in done:
                self._study.enqueue_trial(self._parameters(values), user_attrs={START: i})

    def _parameters(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Values as Optuna has them."""
        return {path: self.space.space[path].parameter(value) for path, value in values.items()}


def _opened(path: Path, name: str) -> "optuna.Study":
    """A study in a file that nobody else writes to; one that was damaged is put aside."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    Path(f"{path}.lock").unlink(missing_ok=True)  # of one who was killed
    if path.exists() and (whole := path.read_bytes().rfind(b"\n") + 1) < path.stat().st_size:
        os.truncate(path, whole)  # the half of a line
    try:
        return _study(path, name)
    except Exception as error:  # whatever a damaged file brings about
        aside = path.with_suffix(".damaged")
        path.replace(aside)
        LOGGER.warning("%s cannot be read: %r; it is %s now, and begun again from the trials", path, error, aside.name)
        return _study(path, name)


def _study(path: Path, name: str) -> "optuna.Study":
    import optuna
    from optuna.storages.journal import JournalFileBackend, JournalStorage

    storage = JournalStorage(JournalFileBackend(str(path)))
    return optuna.create_study(study_name=name, storage=storage, direction="maximize", load_if_exists=True)


def _state(name: str) -> "optuna.trial.TrialState":
    from optuna.trial import TrialState

    return TrialState[name]
