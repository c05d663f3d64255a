"""One search of a name on one storage at a time, through crashes and on hosts whose clocks differ."""

import json
import os
import socket
import subprocess
import sys
import threading

import pytest

from avb_service import lock
from avb_service.errors import UserError
from avb_service.lock import owned


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "BEAT", 0.02)
    monkeypatch.setattr(lock, "WATCH", 1.0)
    return tmp_path / "storage" / ".digits.lock"


def left(path, **changes) -> None:
    """What a process that was killed has left."""
    path.parent.mkdir(exist_ok=True)
    owner = {
        "what": "search digits",
        "user": "ann",
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "since": "then",
        "token": "x",
        "processes": lock._table(),
    }
    path.write_text(json.dumps({**owner, **changes}))


def test_a_second_owner_is_refused_and_told_of_the_first(path):
    with owned(path, "search digits", print):
        with pytest.raises(UserError, match=f"search digits is in use by .* on {socket.gethostname()}") as told:
            with owned(path, "search digits", print):
                pass
        assert str(os.getpid()) in str(told.value) and str(path) in str(told.value)
    assert not path.exists()
    with owned(path, "search digits", print):
        pass


def test_what_a_dead_process_of_this_host_left_is_taken_over_at_once(path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    left(path, pid=gone.pid)
    with owned(path, "search digits", lambda note: pytest.fail("nothing to wait for")):
        assert json.loads(path.read_text())["pid"] == os.getpid()


def test_a_host_of_the_same_name_is_another_host(path):
    """Its processes are not those of this one, so that none is seen here says nothing of it."""
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    left(path, pid=gone.pid, processes="another boot")
    notes: list[str] = []
    with owned(path, "search digits", notes.append):
        pass
    assert "to see whether its owner lives" in notes[0]


def test_another_host_that_gives_no_sign_of_life_is_gone_whatever_the_clocks_say(path):
    left(path, host="lost", processes="another boot")
    os.utime(path, (4e9, 4e9))
    notes: list[str] = []
    with owned(path, "search digits", notes.append):
        assert json.loads(path.read_text())["host"] == socket.gethostname()
    assert "to see whether its owner lives" in notes[0]


def test_another_host_that_gives_signs_of_life_keeps_it(path):
    left(path, host="busy", processes="another boot")
    os.utime(path, (1, 1))
    over = threading.Event()
    alive = threading.Thread(target=lock._beat, args=(path, "x", over))
    alive.start()
    try:
        with pytest.raises(UserError, match="in use by ann on busy"):
            with owned(path, "search digits", print):
                pass
    finally:
        over.set()
        alive.join()
    assert json.loads(path.read_text())["host"] == "busy"


def test_half_a_file_is_nobodys(path):
    path.parent.mkdir()
    path.write_text("{")
    with owned(path, "search digits", print):
        assert json.loads(path.read_text())["what"] == "search digits"


def test_of_many_that_come_at_once_one_has_it(path):
    path.parent.mkdir()
    start, held, refused = threading.Barrier(8), [], []
    done = threading.Event()

    def come(number: int) -> None:
        start.wait()
        try:
            with owned(path, "search digits", lambda note: None):
                held.append(number)
                done.wait(30)
        except UserError:
            refused.append(number)
            if len(refused) == 7:
                done.set()

    threads = [threading.Thread(target=come, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(held), len(refused)) == (1, 7)
