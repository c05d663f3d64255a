import io
from dataclasses import asdict
from types import SimpleNamespace

import pytest
from rich.console import Console

from avb_service.distributed.progress import Bars
from avb_service.report import OBJECTIVE
from avb_service.runs import OUTCOME, Job, Outcome
from avb_service.settings import read_config
from avb_service.storage import write_json
from avb_service.tuning.progress import ProgressCallback


def shown(terminal: bool, **options) -> str:
    console = Console(file=io.StringIO(), force_terminal=terminal, width=80, color_system=None)
    bars = Bars(console=console, **options)
    for round_ in (500, 1000):
        bars.report("mine", {"round": round_, OBJECTIVE: -20.25})
    bars._progress.refresh()
    bars.end("mine", "mine  done")
    bars.close()
    return console.file.getvalue()


def test_off_a_terminal_each_report_is_a_line():
    assert shown(False).splitlines() == [
        "mine  round    500  log p(x) >=   -20.25",
        "mine  round   1000  log p(x) >=   -20.25",
        "mine  done",
    ]


def test_on_a_terminal_the_time_left_is_shown_as_soon_as_it_is_known():
    last = shown(True, rounds=1500).replace("\r", "\n").splitlines()
    assert any("1000/1500" in line and "-20.25" in line and "0:00:0" in line for line in last)


@pytest.mark.parametrize("terminal", [False, True])
def test_programs_are_shown_nothing(terminal):
    assert shown(terminal, quiet=True) == ""


def test_a_model_without_an_estimate_is_shown_as_well():
    console = Console(file=io.StringIO(), force_terminal=False)
    Bars(console=console).report("gan", {"round": 3})
    assert console.file.getvalue().split() == ["gan", "round", "3"]


def test_a_trial_is_shown_against_its_own_number_of_rounds(tmp_path):
    config = read_config("avb_digits", ["training.rounds=600"])
    Job(config, tmp_path / "a", "a", "a", None, "sqlite://", {}).begin()
    callback = ProgressCallback(tmp_path)
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    callback._bars = Bars(console=console)
    trial = SimpleNamespace(trial_id="a", config={"preset": "avb", "trial": "a"})
    callback.on_trial_result(0, [trial], trial, {"round": 40, OBJECTIVE: -20.0})
    callback._bars._progress.refresh()
    callback.on_experiment_end([trial])
    assert "40/600" in console.file.getvalue()


def test_a_trial_that_ends_says_how_and_how_many_have(tmp_path):
    trials = [
        SimpleNamespace(
            trial_id=name,
            config={"preset": "avb", "trial": name},
            last_result={"round": 40, OBJECTIVE: -20.0},
            is_finished=lambda ended=(name == "z"): ended,
            error_file=tmp_path / "error.txt",
        )
        for name in "abcz"
    ]
    for name, outcome in {"a": Outcome("finished"), "b": Outcome("diverged", "round 41: nan")}.items():
        (tmp_path / name).mkdir()
        write_json(tmp_path / name / OUTCOME, asdict(outcome))
    callback = ProgressCallback(tmp_path)
    callback.__setstate__(callback.__getstate__())
    callback._bars = Bars(console=Console(file=io.StringIO(), force_terminal=False, width=120))
    callback.setup(total_num_samples=4)
    for trial in trials[:3]:
        callback.on_trial_complete(0, trials, trial)
        trial.is_finished = lambda: True
    (tmp_path / "error.txt").write_text("The actor died.")
    callback.on_trial_error(0, trials, trials[0])
    (tmp_path / "error.txt").write_text("Traceback\nray.exceptions.RayTaskError: it was told to end")
    callback.on_trial_recover(0, trials, trials[0])
    assert callback._bars._console.file.getvalue().splitlines() == [
        "avb a  finished at round 40  log p(x) >=   -20.00  [2/4]",  # one had ended before, when it was interrupted
        "avb b  diverged at round 40  log p(x) >=   -20.00  [3/4]  round 41: nan",
        "avb c  stopped early at round 40  log p(x) >=   -20.00  [4/4]",
        "avb a  failed at round 40  log p(x) >=   -20.00  [4/4]  its process has died",
        "avb a  goes on from its last checkpoint: it was told to end",
    ]
