"""One search of a name on one storage at a time, through crashes and on hosts whose clocks differ."""

import json
import os
import socket
import subprocess
import sys
import threading
import time

import pytest

from avb_service import lock
from avb_service.errors import TakenOverError, UserError
from avb_service.lock import owned
from tests.paused import ended, paused


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
    alive = threading.Thread(target=lock._beat, args=(path, "x", over, lock.BEAT))
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


LEASE = 1.0  # seconds
PAUSED = """
import sys
from pathlib import Path
from avb_service.lock import owned
from tests.paused import ended, paused

place = Path(sys.argv[1])
with owned(place / ".lock", "run mine", print, lease=float(sys.argv[2])) as mine:
    mine.check()
    (place / "before").touch()
    print("at work", flush=True)
    sys.stdin.readline()  # paused here
    mine.check()
    (place / "after").touch()
"""


def test_an_owner_that_was_paused_for_longer_than_its_lease_writes_no_more(tmp_path):
    process = paused(PAUSED, tmp_path, LEASE, after="at work")
    with owned(tmp_path / ".lock", "run mine", lambda note: None, lease=LEASE) as mine:
        told = ended(process)
        mine.check()
    assert process.returncode != 0 and "TakenOverError: run mine was taken over" in told
    assert f"(process {os.getpid()})" in told, "who has it"
    assert (tmp_path / "before").exists() and not (tmp_path / "after").exists()


def test_an_owner_that_beats_keeps_it_for_longer_than_its_lease(path):
    with owned(path, "run mine", print, lease=LEASE) as mine:
        time.sleep(1.2 * LEASE)
        mine.check()
        with pytest.raises(UserError, match="is in use by"), owned(path, "run mine", lambda note: None, lease=LEASE):
            pass
        mine.check()


def test_whoever_has_lost_it_is_told_by_whom_and_leaves_it_to_the_other(path):
    with owned(path, "run mine", print) as mine:
        left(path, user="bob", host="other", token="another")
        with pytest.raises(TakenOverError, match=r"bob on other \(process .* Nothing was overwritten"):
            mine.check()
    assert json.loads(path.read_text())["user"] == "bob", "it is not ours to remove"


@pytest.mark.parametrize("content", [None, "{"], ids=["no file", "half a file"])
def test_what_is_nobodys_any_more_is_not_ours(path, content):
    with owned(path, "run mine", print) as mine:
        path.unlink() if content is None else path.write_text(content)
        with pytest.raises(TakenOverError, match="given up again, or its file was removed"):
            mine.check()


def test_a_disk_that_is_away_for_a_moment_is_no_loss(path, monkeypatch):
    from avb_service import storage

    monkeypatch.setattr(storage, "WAITS", (0.0,))
    with owned(path, "run mine", print) as mine:
        failures, read = [OSError(5, "Input/output error")], type(path).read_bytes

        def fails_once(self):
            if failures:
                raise failures.pop()
            return read(self)

        monkeypatch.setattr(type(path), "read_bytes", fails_once)
        mine.check()
        failures += [OSError(5, "Input/output error")] * 2
        with pytest.raises(UserError, match="cannot read .* who owns run mine: Input/output error"):
            mine.check()
