"""What a run records reaches MLflow once and in order, through outages, crashes and a disk that may not fill."""

import json
import threading

import pytest

from avb_service.errors import UserError
from avb_service.tracking import outbox
from avb_service.tracking.outbox import DROPPED, Outbox, deliver, letters

URI = "http://mlflow:5000"
LONG = 60  # seconds: nothing here waits for so long unless it has failed


class Server:
    """Stands for MLflow: away, deaf (it takes a write and its answer is lost), refusing, or well."""

    def __init__(self) -> None:
        self.away, self.refusing, self.deaf = False, False, 0
        self.taken: list[tuple] = []
        self.tried = threading.Event()

    def check(self, uri: str) -> str:
        self.tried.set()
        if self.away:
            raise UserError("no MLflow server answers")
        return uri

    def write(self, *what) -> None:
        if self.away:
            raise ConnectionError("refused")
        if self.refusing:
            raise UserError("the run was deleted")
        if what not in self.taken:  # as Run does
            self.taken.append(what)
        if self.deaf:
            self.deaf -= 1
            raise ConnectionError("the answer is lost")


class FakeRun:
    def __init__(self, server: Server) -> None:
        self.server = server

    def log_metrics(self, metrics, step, tags, when):
        self.server.write("metrics", step, tuple(metrics.items()), when)

    def log_figure(self, name, picture, step, when):
        self.server.write("figure", step, name, picture, when)

    def set_tags(self, tags):
        self.server.write("tags", *tags.items())

    def finish(self, status, reason, when):
        self.server.write("finish", status, reason)


@pytest.fixture
def server(monkeypatch) -> Server:
    server = Server()
    monkeypatch.setattr(outbox, "check_server", server.check)
    monkeypatch.setattr(outbox, "PAUSE", 0.01)
    monkeypatch.setattr(outbox, "HEAD_START", 0)
    return server


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "trial" / "outbox"


@pytest.fixture
def make(server, folder):
    def build(**options) -> Outbox:
        return Outbox(folder, lambda when: FakeRun(server), URI, **options)

    return build


def record(box: Outbox, rounds) -> None:
    for round_ in rounds:
        box.log_metrics({"loss": 1.0 / round_}, round_)
        box.log_figure("samples", bytes([round_]), round_)


def steps(server: Server) -> list[tuple[str, int]]:
    return [(kind, step) for kind, step, *_ in server.taken if kind in ("metrics", "figure")]


def both(rounds) -> list[tuple[str, int]]:
    return [(kind, round_) for round_ in rounds for kind in ("metrics", "figure")]


def test_training_has_a_head_start_which_nobody_waits_for_at_the_end(make, server, monkeypatch):
    monkeypatch.setattr(outbox, "HEAD_START", 3 * LONG)
    box = make()
    record(box, range(1, 3))
    assert not server.tried.wait(0.2)
    assert box.close(LONG) == 0
    assert steps(server) == both(range(1, 3))


def test_what_is_recorded_arrives_in_order_and_nothing_stays(make, server, folder):
    box = make()
    box.set_tags({"code": "abc"})
    record(box, range(1, 5))
    box.finish("FAILED", "diverged")
    assert box.close(LONG) == 0
    assert steps(server) == both(range(1, 5))
    assert (server.taken[0], server.taken[-1]) == (("tags", ("code", "abc")), ("finish", "FAILED", "diverged"))
    assert letters(folder) == []


def test_training_goes_on_while_the_server_is_away_and_all_arrives_when_it_is_back(make, server):
    box = make()
    record(box, range(1, 3))
    server.away = True
    server.tried.clear()
    record(box, range(3, 6))  # does not wait
    assert server.tried.wait(LONG)
    server.away = False
    record(box, range(6, 8))
    assert box.close(LONG) == 0
    assert steps(server) == both(range(1, 8))


def test_a_write_whose_answer_was_lost_is_tried_again_exactly_as_it_was(make, server):
    server.deaf = 2
    box = make()
    record(box, range(1, 4))
    assert box.close(LONG) == 0
    assert steps(server) == both(range(1, 4))


def test_what_a_killed_process_left_is_delivered_first(make, server, folder):
    server.away = True
    box = make()
    record(box, range(1, 4))
    assert box.close(0.05) == 6
    assert len(letters(folder)) == 6
    server.away = False
    again = make()
    record(again, range(4, 6))
    assert again.close(LONG) == 0
    assert steps(server) == both(range(1, 6))


def test_a_command_that_continues_delivers_what_was_left_and_says_what_it_waits_for(make, server, folder, monkeypatch):
    monkeypatch.setattr(outbox, "NOTE", 0.02)
    server.away = True
    box = make()
    box.log_metrics({"loss": 1.0}, 1)
    assert box.close(0.05) == 1
    said: list[str] = []
    with pytest.raises(UserError, match=f"does not answer; 1 records are kept in {folder}.*--resume"):
        deliver(folder, lambda when: FakeRun(server), URI, 0.1, said.append)
    assert said and said[0].startswith(f"1 records of trial wait for MLflow at {URI}")
    server.away = False
    deliver(folder, lambda when: FakeRun(server), URI, LONG, said.append)
    assert steps(server) == [("metrics", 1)]
    deliver(folder, lambda when: pytest.fail("nothing is left"), URI, LONG, said.append)


def test_a_refusal_is_an_error_and_loses_nothing(make, server, folder):
    server.refusing = True
    box = make()
    box.log_metrics({"loss": 1.0}, 1)
    with pytest.raises(UserError, match="refuses what trial records: the run was deleted"):
        box.close(LONG)
    with pytest.raises(UserError, match="the run was deleted"):
        box.log_metrics({"loss": 1.0}, 2)
    assert len(letters(folder)) == 1


def test_a_full_queue_gives_up_old_plots_first_then_old_numbers_and_says_so(make, server, folder, caplog):
    server.away = True
    box = make(limit=1500)
    box.set_tags({"code": "abc"})
    for round_ in range(1, 6):
        box.log_metrics({"loss": 1.0}, round_)
        box.log_figure("samples", bytes(400), round_)
    kept = [json.loads(path.read_text()) for path in letters(folder)]
    assert [letter["step"] for letter in kept if "metrics" in letter] == [1, 2, 3, 4, 5]
    assert [letter["step"] for letter in kept if "figure" in letter] == [5]
    for round_ in range(6, 46):
        box.log_metrics({"loss": 1.0}, round_)
    kept = [json.loads(path.read_text()) for path in letters(folder)]
    numbers = [letter["step"] for letter in kept if "step" in letter]
    assert numbers == list(range(numbers[0], 46)) and numbers[0] > 1
    assert sum(path.stat().st_size for path in letters(folder)) <= 1500
    assert "gave way" in caplog.text
    server.away = False
    assert box.close(LONG) == 0
    assert ("tags", ("code", "abc")) in server.taken
    assert any(what[0] == "tags" and what[1][0] == DROPPED for what in server.taken)


def test_half_a_letter_stops_nobody(make, server, folder):
    folder.mkdir(parents=True)
    (folder / "00000000.1-numbers.json").write_text('{"metrics": {"lo')
    box = make()
    box.log_metrics({"loss": 1.0}, 1)
    assert box.close(LONG) == 0
    assert steps(server) == [("metrics", 1)]
