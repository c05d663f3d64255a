"""One owner at a time for a folder that several hosts share: a file that its owner keeps touching.

Floor 4. The system's own locks are not used: on many shared disks they hold on one host alone, or not at all. An owner
that is paused for longer than its lease loses what it owns, and does not notice by itself. So it asks, right before it
writes what the next owner relies on (`Owned.check`), and so does each process that works for it.
"""

import getpass
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from avb_service.errors import DataError, TakenOverError, UserError
from avb_service.storage import parse_json, persistently, read_file, write_json

BEAT = 5.0  # seconds between two signs of life
WATCH = 20.0  # seconds without one, and the owner is gone; other clocks are not trusted


@dataclass(frozen=True)
class Owned:
    """What somebody owns for as long as nobody takes it over; plain values, that can be sent to other processes.

    Attributes:
        path: of the lock file.
        what: is owned, for people.
        token: that the file holds while it is owned.
    """

    path: str
    what: str
    token: str

    def check(self) -> None:
        """Make sure that nobody has taken it over; to be asked right before each write that the next owner relies on.

        Raises:
            TakenOverError: somebody has; says who.
            UserError: the file cannot be read, so nobody knows.
        """
        path = Path(self.path)
        try:
            content: bytes | None = persistently(path.read_bytes)
        except FileNotFoundError:
            content = None
        except OSError as error:
            raise UserError(f"cannot read {path}, which says who owns {self.what}: {error.strerror}") from error
        try:
            owner = {} if content is None else parse_json(path, content)
        except DataError:  # half a file is nobody's
            owner = {}
        if owner.get("token") != self.token:
            by = f"{_who(owner)} has it now" if owner else "and has been given up again, or its file was removed"
            raise TakenOverError(
                f"{self.what} was taken over while this process gave no sign of life (paused, or without its disk): "
                f"{by}. Nothing was overwritten, and this process ends. What the other has not finished by its end is "
                f"continued by the same command. {path} says who is at work"
            )


class OneOwner:
    """What one process at a time is at work on: a run, a search.

    Attributes:
        owned: what says that nobody else is at work on it; None where nobody else can be, as in one process.
    """

    owned: Owned | None

    def check_owned(self) -> None:
        """Make sure that nobody else is at work on it by now; asked before each write that another would rely on.

        Raises:
            TakenOverError: somebody is.
        """
        if self.owned is not None:
            self.owned.check()


@contextmanager
def owned(path: Path, what: str, on_wait: Callable[[str], None], lease: float | None = None) -> Iterator[Owned]:
    """Own something while the block lasts.

    Args:
        path: of the lock file.
        what: is owned, for people.
        on_wait: told when it takes a while to see whether another owner lives.
        lease: seconds without a sign of life after which an owner is taken for gone; WATCH by default. The same for
            all who ask for one file.

    Raises:
        UserError: somebody else owns it; says who, where and since when.
    """
    lease = WATCH if lease is None else lease
    beat = min(BEAT, lease / 4)
    mine = {
        "what": what,
        "user": getpass.getuser(),
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "since": f"{datetime.now():%Y-%m-%d %H:%M:%S}",
        "token": secrets.token_hex(8),
        "processes": _table(),
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not _first(path, mine):
            if _lives(path, lease, on_wait):
                raise _taken(path, what)
            write_json(path, mine)  # of several that take it over, the last one has it
            time.sleep(beat / 10)
            if _token(path) != mine["token"]:
                raise _taken(path, what)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; choose another place with --storage") from error
    over = threading.Event()
    thread = threading.Thread(target=_beat, args=(path, mine["token"], over, beat), name="lock", daemon=True)
    thread.start()
    try:
        yield Owned(str(path), what, str(mine["token"]))
    finally:
        over.set()
        thread.join()
        if _token(path) == mine["token"]:
            path.unlink(missing_ok=True)


def _first(path: Path, mine: dict[str, object]) -> bool:
    """Make the file, if there is none."""
    try:
        with path.open("x", encoding="utf-8") as file:
            json.dump(mine, file)
    except FileExistsError:
        return False
    return True


def _lives(path: Path, lease: float, on_wait: Callable[[str], None]) -> bool:
    """Whether the owner is there: by its process, where that would be seen from here, else by its signs of life."""
    owner = _read(path)
    if owner.get("processes") == _table() and not Path(f"/proc/{owner.get('pid')}").exists():
        return False
    seen, until = _sign(path), time.monotonic() + lease
    on_wait(f"{owner.get('what')} seems to be in use: watching {path} for {lease:.0f} s to see whether its owner lives")
    while time.monotonic() < until:
        time.sleep(min(BEAT, lease / 4) / 10)
        if _sign(path) != seen:
            return path.exists()
    return False


def _table() -> str:
    """Which table of processes this is: hosts and containers may share a name, but not a boot and a namespace."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:  # no Linux: then nobody's table is the same
        return secrets.token_hex(8)


def _taken(path: Path, what: str) -> UserError:
    return UserError(
        f"{what} is in use by {_who(_read(path))}: wait until that has ended, or choose another name or --storage. "
        f"{path} says so"
    )


def _who(owner: dict[str, object]) -> str:
    return f"{owner.get('user')} on {owner.get('host')} (process {owner.get('pid')}), since {owner.get('since')}"


def _beat(path: Path, token: object, over: threading.Event, every: float) -> None:
    while not over.wait(every):
        try:
            if _token(path) == token:
                os.utime(path)
        except OSError:  # the disk is away for a moment, and with it whoever could ask
            continue


def _sign(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def _token(path: Path) -> object:
    return _read(path).get("token")


def _read(path: Path) -> dict[str, object]:
    try:
        return parse_json(path, read_file(path))
    except DataError:
        return {}
