"""What is tried next: by every searcher, killed anywhere, and told of what came of it."""

import math
import statistics
from pathlib import Path
from types import SimpleNamespace

import optuna
import pytest

from avb_service.errors import UserError
from avb_service.runs import Job, Outcome
from avb_service.tuning import study as studies
from avb_service.tuning.agenda import Agenda, Listed
from avb_service.tuning.asking import InformedScheduler
from avb_service.tuning.earlier import earlier_trials
from avb_service.tuning.record import new_folder
from avb_service.tuning.searchers import SEARCHERS
from avb_service.tuning.space import SpaceConfig
from avb_service.tuning.study import STUDIES, Study

LR, STEPS, LATENT = "algorithm.model.lr", "algorithm.adversary.steps", "algorithm.latent_dim"
SPACE = {
    "name": "x", "preset": "avb_digits", "trials": 6, "baselines": [],
    "space": {LR: {"qloguniform": [1e-4, 1e-2, 1e-4]}, STEPS: {"choice": [1, 2, 5]},
              LATENT: {"qrandint": [2, 8, 2], "when": {STEPS: [2, 5]}}},
}  # fmt: skip


def space(**changes) -> SpaceConfig:
    return SpaceConfig.parse({**SPACE, **changes})


def bowl(values: dict) -> float:
    """A quadratic of the logarithms of all rates, lowest where each is 0.001."""
    return sum((math.log10(value) + 3) ** 2 for path, value in values.items() if path.endswith(".lr"))


def asked(found: SpaceConfig, folder: Path, killed: bool = False) -> list[dict]:
    """All that is suggested to find the bottom of the bowl, by one who begins again before each or not."""
    made, values = Study(found, "avb_digits", folder), []
    while (setting := made.ask()) is not None:
        values.append(dict(setting.values))
        made.tell(setting, -bowl(values[-1]))
        if killed:
            made = Study(found, "avb_digits", folder)
    return values


def train(folder: Path, config, name: str, status: str | None = "finished", kind: str = "trial") -> None:
    """What is left of a trial that has ended, or that was killed."""
    Job(config, folder / "trials" / name, name, name, None, "sqlite://", {"avb.kind": kind}).begin()
    if status:
        Outcome(status).write(folder / "trials" / name)


@pytest.fixture(autouse=True)
def objectives(monkeypatch) -> dict[str, float]:
    """What trials have reached, by name."""
    reached: dict[str, float] = {}

    def read(folder, owned=None):
        job = Job.read(folder)
        found = reached.get(folder.name)
        return SimpleNamespace(objective=found, job=job, curve=[[100, found]], stage=job.tags["avb.kind"])

    monkeypatch.setattr("avb_service.tuning.trials.Trial.read", read)
    return reached


@pytest.mark.parametrize("name", SEARCHERS.own)
def test_a_searcher_suggests_as_many_settings_as_are_asked_for_and_the_same_when_it_was_killed(name, tmp_path):
    found = space(searcher=name)
    for place in ("a", "b"):
        (tmp_path / place).mkdir()
    calm, rough = asked(found, tmp_path / "a"), asked(found, tmp_path / "b", killed=True)
    assert len(calm) == 6 and len({str(values) for values in calm}) == 6
    assert rough == calm
    assert calm[0] == {LR: 1e-4, STEPS: 2, LATENT: 8}, "the preset's own"
    for values in calm:
        assert (LATENT in values) == (values[STEPS] != 1)


@pytest.mark.parametrize("name", ["grid", "random", "tpe"])
def test_a_space_that_is_exhausted_ends(name, tmp_path):
    few = {STEPS: SPACE["space"][STEPS], LATENT: SPACE["space"][LATENT]}
    made = Study(space(searcher=name, space=few, trials=40), "avb_digits", tmp_path)
    found = []
    while (setting := made.ask()) is not None:
        made.tell(setting, 0.0)
        found.append(str(dict(setting.values)))
    assert len(found) == len(set(found)) == 1 + 2 * 4


def test_what_is_asked_for_is_tried_first_and_the_rest_of_it_is_drawn(tmp_path):
    first, second, third, *_ = asked(space(start=[{STEPS: 5, LATENT: 4, LR: 0.002}, {STEPS: 1}]), tmp_path)
    assert first == {LR: 1e-4, STEPS: 2, LATENT: 8}
    assert second == {LR: 0.002, STEPS: 5, LATENT: 4}
    assert third[STEPS] == 1 and space().space[LR].contains(third[LR])


def test_tpe_goes_to_the_bottom_of_a_bowl_and_random_search_does_not(tmp_path):
    rates = {LR: {"loguniform": [1e-6, 1.0]}, "algorithm.adversary.lr": {"loguniform": [1e-6, 1.0]}}

    def late(name: str) -> float:
        (tmp_path / name).mkdir()
        found = asked(space(searcher=name, space=rates, trials=40), tmp_path / name)
        return statistics.mean(map(bowl, found[25:]))

    assert late("tpe") < 0.6 * late("random")


def test_a_trial_that_had_begun_comes_first_and_one_that_has_ended_is_only_told(tmp_path, objectives):
    agenda = Agenda(Study(space(), "avb_digits", tmp_path), tmp_path / "trials")
    one, two, three = agenda.next(), agenda.next(), agenda.next()
    train(tmp_path, one.setting.configs[one.trial], one.trial)
    train(tmp_path, two.setting.configs[two.trial], two.trial, status=None)
    objectives[one.trial] = -20.0
    again = Agenda(Study(space(), "avb_digits", tmp_path), tmp_path / "trials")
    tasks = []
    while (task := again.next()) is not None:
        tasks.append(task)
    assert [task.trial for task in tasks[:2]] == [two.trial, three.trial], "the third had no folder yet"
    assert len(tasks) == 5 and one.trial not in {task.trial for task in tasks}
    (told,) = [trial for trial in recorded(tmp_path) if trial.state.name == "COMPLETE"]
    assert (told.user_attrs["trial"], told.value) == (one.trial, -20.0)


def recorded(folder: Path) -> list:
    from optuna.storages.journal import JournalFileBackend, JournalStorage

    storage = JournalStorage(JournalFileBackend(str(folder / STUDIES)))
    return optuna.load_study(study_name="avb_digits", storage=storage).trials


@pytest.mark.parametrize("status", ["stopped", "diverged", "failed"])
def test_how_a_trial_ended_decides_whether_it_is_trained_again(status, tmp_path):
    agenda = Agenda(Study(space(), "avb_digits", tmp_path), tmp_path / "trials")
    task = agenda.next()
    train(tmp_path, task.setting.configs[task.trial], task.trial, status)
    again = Agenda(Study(space(), "avb_digits", tmp_path), tmp_path / "trials").next()
    assert (again.trial == task.trial) == (status == "failed")


@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_text("{no\n{json\n"),
                                    lambda path: path.write_bytes(path.read_bytes()[:-9])],
                         ids=["lost", "damaged", "torn"])  # fmt: skip
def test_a_study_that_is_lost_is_begun_again_from_the_folders(damage, tmp_path, objectives):
    agenda = Agenda(Study(space(), "avb_digits", tmp_path), tmp_path / "trials")
    tasks = [agenda.next() for _ in range(3)]
    for i, task in enumerate(tasks):
        train(tmp_path, task.setting.configs[task.trial], task.trial, "finished" if i else None)
        objectives[task.trial] = -20.0 - i
    damage(tmp_path / STUDIES)
    again = Agenda(Study(space(), "avb_digits", tmp_path), tmp_path / "trials")
    left = []
    while (task := again.next()) is not None:
        left.append(task.trial)
    assert left[0] == tasks[0].trial and len(left) == 4 and not {tasks[1].trial, tasks[2].trial} & set(left)


class Killed(BaseException):
    pass


@pytest.mark.parametrize("moment", [1, 2, 3, 4, 6, 9, 13, 17, 21, 26])
def test_one_who_is_killed_between_any_two_lines_of_the_study_tries_the_same_settings(moment, tmp_path, monkeypatch):
    found = space(start=[{STEPS: 5, LATENT: 4, LR: 0.002}])
    for place in ("calm", "killed"):
        (tmp_path / place).mkdir()
    calm, backend, written = asked(found, tmp_path / "calm"), optuna.storages.journal.JournalFileBackend, []
    act = backend.append_logs

    def mortal(self, logs):
        if len(written) == moment:
            raise Killed
        written.append(logs)
        act(self, logs)

    with monkeypatch.context() as patched:
        patched.setattr(backend, "append_logs", mortal)
        with pytest.raises(Killed):
            asked(found, tmp_path / "killed")
    made = Study(found, "avb_digits", tmp_path / "killed")
    tried = [made._values(trial) for trial in made._in_state("COMPLETE")] + [each.values for each in made.begun()]
    while (setting := made.ask()) is not None:
        tried.append(setting.values)
    assert sorted(str(dict(values)) for values in tried) == sorted(map(str, calm))


def test_a_folder_of_the_release_before_is_gone_on_with_under_its_own_name(tmp_path):
    values = {LR: 0.0012, STEPS: 1}
    train(tmp_path, space().trial("avb_digits", values), "1ab2c_00000", status=None)
    train(tmp_path, space().trial("avb_digits", {**values, STEPS: 2, LATENT: 4}), "1ab2c_00001")
    agenda = Agenda(Study(space(), "avb_digits", tmp_path), tmp_path / "trials")
    tasks = []
    while (task := agenda.next()) is not None:
        tasks.append(task)
    assert tasks[0].trial == "1ab2c_00000" and dict(tasks[0].setting.values) == values
    assert len(tasks) == 5 and "1ab2c_00001" not in {task.trial for task in tasks}


def test_further_seeds_are_trained_of_what_was_not_stopped_and_the_mean_is_told(tmp_path, objectives):
    agenda = Agenda(Study(space(seeds=2, trials=2), "avb_digits", tmp_path), tmp_path / "trials")
    one, two = agenda.next(), agenda.next()
    assert agenda.next() is None and agenda.waits
    for task, status in ((one, "stopped"), (two, "finished")):
        train(tmp_path, task.setting.configs[task.trial], task.trial, status)
        objectives[task.trial] = -20.0
        agenda.ended(task.trial)
    more = agenda.next()
    assert more.setting == two.setting and more.again
    assert more.setting.assignments(more.trial)["training.seed"] == 1
    train(tmp_path, more.setting.configs[more.trial], more.trial)
    objectives[more.trial] = -22.0
    agenda.ended(more.trial)
    assert agenda.next() is None and not agenda.waits
    assert sorted(trial.value for trial in recorded(tmp_path)) == [-21.0, -20.0]


def test_baselines_are_settings_that_nobody_draws(tmp_path):
    listed = Listed(space(), ["vae_digits", "avb_ac_digits"], {LATENT: 4})
    agenda = Agenda(listed, tmp_path / "trials")
    found = [agenda.next() for _ in range(2)]
    assert [task.setting.preset for task in found] == ["vae_digits", "avb_ac_digits"] and agenda.next() is None
    assert all(task.setting.configs[task.trial].algorithm.latent_dim == 4 for task in found)


def test_a_scheduler_knows_what_was_reported_before():
    told = []
    inner = SimpleNamespace(
        on_trial_add=lambda _, trial: told.append(trial.trial_id),
        on_trial_result=lambda _, trial, result: told.append((result["round"], result["figure"])) or "CONTINUE",
        on_trial_complete=lambda *_: told.append("end"),
    )
    scheduler = InformedScheduler(inner, {"a": [[100, -3.0]]}, {"b": [[100, -2.0]]}, "figure")
    trial = SimpleNamespace(trial_id="1", config={"trial": "b", "again": False})
    scheduler.on_trial_add(None, trial)
    assert told == ["a", (100, -3.0), "end", "1", (100, -2.0)]
    further = SimpleNamespace(trial_id="2", config={"trial": "c", "again": True})
    scheduler.on_trial_add(None, further)
    assert scheduler.on_trial_result(None, further, {}) == "CONTINUE" and len(told) == 5


def test_asha_stops_a_trial_that_is_behind_those_before_the_interruption():
    found = space(scheduler={"asha": {"grace": 1, "reduction": 2}})
    race = found.race("avb_digits")
    past = {str(i): [[race.every, -20.0 + i]] for i in range(4)}
    for value, action in ((-30.0, "STOP"), (-10.0, "CONTINUE")):
        scheduler = InformedScheduler(found.scheduler.scheduler(race), past, {}, race.metric)
        trial = SimpleNamespace(trial_id="x", config={"trial": "x", "again": False})
        scheduler.on_trial_add(None, trial)
        report = {"round": race.every, race.metric: value, "training_iteration": 1}
        assert scheduler.on_trial_result(None, trial, report) == action


def test_a_search_learns_from_an_earlier_one(tmp_path, objectives):
    before = new_folder(space(name="before"), tmp_path)
    train(before, space().trial("avb_digits", {LR: 0.0012, STEPS: 1}), "a")
    objectives["a"] = -20.0
    found = space(**{"from": "before"}, searcher="tpe")
    earlier = earlier_trials(found, tmp_path)
    (tmp_path / "now").mkdir()
    for _ in range(2):  # also when it is begun again
        made = Study(found, "avb_digits", tmp_path / "now", earlier["avb_digits"])
        (told,) = [trial for trial in recorded(tmp_path / "now") if trial.state.name == "COMPLETE"]
        assert told.value == -20.0 and made.names == []
    assert made.ask().values == {LR: 1e-4, STEPS: 2, LATENT: 8}


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"set": {"data.seed": 3}}, "data.seed: 0 -> 3"),
        ({"space": {LR: {"loguniform": [1e-4, 1e-2]}}}, f"space.{LR}.loguniform"),
        ({"preset": "avb_ac_digits"}, "with a preset in common"),
        ({"from": "nothing"}, "holds no search 'nothing'"),
    ],
)  # fmt: skip
def test_a_search_of_something_else_is_refused_by_what_differs(changes, line, tmp_path):
    new_folder(space(name="before"), tmp_path)
    with pytest.raises(UserError) as told:
        earlier_trials(space(**{"from": "before", "searcher": "tpe", **changes}), tmp_path)
    assert line in str(told.value)


def test_a_setting_that_cannot_be_run_is_drawn_anew(tmp_path, monkeypatch, caplog):
    made, resolve = Study(space(), "avb_digits", tmp_path), studies.resolve

    def refuse(found, kind, preset, values, first=None):
        if values[STEPS] == 2:
            raise UserError("steps: not 2")
        return resolve(found, kind, preset, values, first)

    monkeypatch.setattr(studies, "resolve", refuse)
    assert made.ask().values[STEPS] != 2 and "steps: not 2" in caplog.text


def test_a_searcher_of_another_package_is_chosen_by_its_name(tmp_path, monkeypatch):
    (tmp_path / "theirs.py").write_text(
        "from typing import ClassVar, Literal\n\n"
        "from avb_service.tuning.searchers import Searcher, draw_seed\n\n\n"
        "class GPConfig(Searcher):\n"
        '    """Gaussian process.\n\n    Attributes:\n        startup: random draws first.\n    """\n\n'
        '    name: Literal["gp"] = "gp"\n'
        "    learns: ClassVar[bool] = True\n"
        "    startup: int = 3\n\n"
        "    def sampler(self, seed, draw):\n"
        "        from optuna.samplers import GPSampler\n\n"
        "        return GPSampler(n_startup_trials=self.startup, seed=draw_seed(seed, draw))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("AVB_PLUGINS", "gp=theirs:GPConfig")
    found = asked(space(searcher={"gp": {"startup": 2}}, trials=4), tmp_path)
    assert len(found) == 4 and all(space().space[LR].contains(values[LR]) for values in found)
