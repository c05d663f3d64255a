"""What a notebook sees: results, pictures, refusals; and one connection to Ray for all threads of a process."""

import os
from types import SimpleNamespace

import pytest
import ray
from matplotlib.figure import Figure

from avb_service import display
from avb_service.display import Display
from avb_service.distributed import cluster, own
from avb_service.errors import ConfigError
from avb_service.figures.canvas import blank
from avb_service.results import Promoted
from avb_service.shown import Plots

PNG = b"\x89PNG"


@pytest.fixture
def connection(monkeypatch):
    """Ray as it tells whether there is a connection, and how often one was made."""
    state = SimpleNamespace(there=False, made=0)
    monkeypatch.setattr(os, "environ", {**os.environ, "RAY_ADDRESS": "local"})

    def start(*_, **__):
        state.there, state.made = True, state.made + 1
        os.environ["RAY_ADDRESS"] = "10.0.0.1:6379"

    monkeypatch.setattr(ray, "is_initialized", lambda: state.there)
    monkeypatch.setattr(ray, "shutdown", lambda: setattr(state, "there", False))
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": 2}}])
    monkeypatch.setattr(own, "start", start)
    return state


def test_blocks_that_overlap_share_a_cluster_and_the_last_one_stops_it(connection):
    first, second = cluster.cluster(), cluster.cluster()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert connection.there and connection.made == 1
    second.__exit__(None, None, None)
    assert not connection.there and os.environ["RAY_ADDRESS"] == "local"


def test_a_connection_that_was_there_before_is_left(connection):
    connection.there = True
    with cluster.cluster() as capacity:
        assert capacity.cpus == 2
    assert connection.there and not connection.made


def test_a_start_that_fails_leaves_nothing_behind(connection, monkeypatch):
    def fail(*_, **__):
        raise OSError

    with monkeypatch.context() as failing:
        failing.setattr(own, "start", fail)
        with pytest.raises(OSError), cluster.cluster():
            raise AssertionError("it was entered")
    with cluster.cluster():
        assert connection.made == 1
    assert not connection.there


def test_a_picture_shows_itself_whether_or_not_pyplot_is_there():
    picture = blank(40, 40, "title", "how")
    assert isinstance(picture, Figure) and picture._repr_png_().startswith(PNG)
    assert Plots(samples=picture)._repr_html_().count("data:image/png") == 1


def test_a_result_is_printed_as_a_person_reads_it():
    promoted = Promoted("models:/a/1", "for its [looks] & <more>")
    assert repr(promoted) == str(promoted) == "models:/a/1 is champion: for its [looks] & <more>"
    assert "[looks] &amp; &lt;more&gt;" in promoted._repr_html_()
    assert repr(Plots(samples=blank(40, 40, "title", "how"))) == "samples"


def test_a_refusal_is_its_message_alone():
    assert ConfigError(["a: wrong"], "x.yaml")._render_traceback_() == ["ConfigError: x.yaml: 1 problem\n  a: wrong"]


def test_a_cell_gets_plain_lines_although_its_kernel_asks_for_colours(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setattr(display.ERR, "is_jupyter", True)
    shown = Display()
    with shown.training(10) as bars, shown.scoring() as progress:
        shown.note("begun")
        bars.report("x", {"round": 5})
        progress("ais")(1, 2)
    printed = capsys.readouterr()
    assert printed.out.splitlines() == ["begun", "x  round      5  "] and not printed.err
