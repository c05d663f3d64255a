import io

import pytest
from rich.console import Console

from avb_service.distributed.progress import Bars
from avb_service.experiment import OBJECTIVE


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
        "mine  round    500  log p(x) >=   -20.25", "mine  round   1000  log p(x) >=   -20.25", "mine  done",
    ]  # fmt: skip


def test_on_a_terminal_the_time_left_is_shown_as_soon_as_it_is_known():
    last = shown(True, rounds=1500).replace("\r", "\n").splitlines()
    assert any("1000/1500" in line and "-20.25" in line and "0:00:0" in line for line in last)


@pytest.mark.parametrize("terminal", [False, True])
def test_programs_are_shown_nothing(terminal):
    assert shown(terminal, quiet=True) == ""


def test_a_model_without_a_figure_is_shown_as_well():
    console = Console(file=io.StringIO(), force_terminal=False)
    Bars(console=console).report("gan", {"round": 3})
    assert console.file.getvalue().split() == ["gan", "round", "3"]
