"""What a run records, kept on disk until MLflow has it: training never waits for a server.

Floor 7. MLflow's own asynchronous logging keeps its queue in memory, tries for four minutes and then drops what it has;
so it is not used. Its own retries carry a write over a short gap; here are the long ones.
"""

import base64
import json
import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from avb_service.errors import UserError
from avb_service.storage import write_json
from avb_service.tracking.runs import Run, Status
from avb_service.tracking.server import check_server

LIMIT = 256 * 2**20  # bytes on disk of what one run has to deliver
PAUSE = 5  # seconds between two attempts
ATTEMPTS = 3  # at a letter that a server which answers does not take
NOTE = 10  # seconds between two words on what is waited for
HEAD_START = 5  # seconds that training has the interpreter to itself, before this thread imports MLflow beside it
PLOT, NUMBERS, MARK = "0-figure", "1-numbers", "2-mark"  # in the order in which they give way; a mark never does
DROPPED = "avb.dropped"

Opener = Callable[[int | None], Run]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Letter:
    """A file that waits to be delivered."""

    path: Path
    size: int

    @property
    def kind(self) -> str:
        """Plot, numbers or mark."""
        return self.path.suffixes[0].removeprefix(".")

    @classmethod
    def at(cls, path: Path) -> "Letter":
        """A file that is there."""
        return cls(path, path.stat().st_size)


class Outbox:
    """A recorder that writes to a folder, from which a thread delivers to MLflow: in order, each thing once.

    What is in the folder when it is opened is delivered first. A letter is removed when MLflow has taken it; one that
    is delivered again, because nobody learned that it had arrived, changes nothing there (see `Run`).

    Args:
        folder: of this run alone.
        open_run: finds the run, or makes one that has begun at a time (milliseconds since the epoch), that of the first
            letter; called in the thread, and again after each failure.
        uri: where that is.
        limit: bytes that may wait; beyond it the oldest plots give way, then the oldest numbers.
    """

    def __init__(self, folder: Path, open_run: Opener, uri: str, limit: int = LIMIT) -> None:
        self.folder, self._open, self._uri, self._limit = folder, open_run, uri, limit
        self._waiting = [Letter.at(path) for path in letters(folder)]
        self._number = int(self._waiting[-1].path.name.split(".")[0]) + 1 if self._waiting else 0
        self._dropped = 0
        self._news = threading.Condition()
        self._closing = False
        self._over = threading.Event()
        self._refusal: Exception | None = None
        self._thread = threading.Thread(target=self._deliver, name="outbox", daemon=True)
        self._thread.start()

    def log_metrics(self, metrics: Mapping[str, float], step: int, tags: Mapping[str, str] | None = None) -> None:
        """Numbers at a round, and what is true of the run from then on."""
        numbers = {key: float(value) for key, value in metrics.items()}
        self._post(NUMBERS, {"metrics": numbers, "step": step, "tags": dict(tags or {})})

    def log_figure(self, name: str, picture: bytes, step: int | None = None) -> None:
        """A PNG at a round; without one, the final picture of that name."""
        self._post(PLOT, {"figure": name, "png": base64.b64encode(picture).decode(), "step": step})

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """What a table of runs shows of this one."""
        self._post(MARK, {"tags": dict(tags)})

    def finish(self, status: Status = "FINISHED", reason: str | None = None) -> None:
        """Close the run, when all before has been delivered."""
        self._post(MARK, {"status": status, "reason": reason})

    def close(self, patience: float, on_wait: Callable[[str], None] = _log.info) -> int:
        """Deliver what is left, as long as patience lasts; what is still left then stays in the folder.

        Args:
            patience: seconds.
            on_wait: told now and then what is waited for.

        Returns:
            How many letters stay.

        Raises:
            UserError: MLflow answers, and refuses what it was given.
        """
        until = time.monotonic() + patience
        with self._news:
            self._closing = True
            self._news.notify()
        while self._thread.is_alive() and (left := until - time.monotonic()) > 0:
            self._thread.join(min(NOTE, left))
            if self._thread.is_alive() and self._waiting:
                on_wait(
                    f"{len(self._waiting)} records of {self.folder.parent.name} wait for MLflow at {self._uri}, "
                    f"{max(0, until - time.monotonic()):.0f} s more"
                )
        self._over.set()
        self._raise_refusal()
        return len(self._waiting)

    def _raise_refusal(self) -> None:
        if self._refusal is not None:
            raise UserError(
                f"MLflow at {self._uri} refuses what {self.folder.parent.name} records: {self._refusal}. "
                f"It is kept in {self.folder}, and delivered when the run is continued"
            ) from self._refusal

    def _post(self, kind: str, letter: Mapping[str, Any]) -> None:
        self._raise_refusal()
        with self._news:
            path = self.folder / f"{self._number:08d}.{kind}.json"
            self._number += 1
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                write_json(path, {**letter, "when": time.time_ns() // 1_000_000})
            except OSError as error:
                raise UserError(f"cannot write {path}: {error.strerror or error}; make room") from error
            self._waiting.append(Letter.at(path))
            self._make_room()
            self._news.notify()

    def _make_room(self) -> None:
        excess = sum(letter.size for letter in self._waiting) - self._limit
        if excess <= 0:
            return
        for letter in sorted(self._waiting[:-1], key=lambda each: (each.kind, each.path)):
            if excess > 0 and letter.kind != MARK:
                self._discard(letter)
                excess -= letter.size
                self._dropped += 1
                _log.warning("%s is full: %s gave way", self.folder, letter.path.name)

    def _deliver(self) -> None:
        """What the thread does until the folder is empty and nobody writes to it any more."""
        run, failures, told = None, 0, 0
        with self._news:
            self._news.wait_for(lambda: self._closing, HEAD_START)
        while (letter := self._next()) is not None:
            try:
                content = _read(letter.path)
                if run is None:
                    check_server(self._uri)  # says within seconds that nobody answers; MLflow would try for minutes
                    run = self._open(content["when"] if content else None)
                if self._dropped > told:
                    run.set_tags({DROPPED: str(self._dropped)})
                    told = self._dropped
                if content is not None:
                    _hand_over(run, content)
            except Exception as error:  # whatever it is, training goes on
                run = None  # opened anew, it asks the server what has arrived
                failures += _answers(self._uri)
                if failures >= ATTEMPTS:
                    self._refusal = error
                    return
                _log.warning("%s: not delivered, kept in %s: %s", self._uri, self.folder, error)
                self._over.wait(PAUSE)
            else:
                failures = 0
                with self._news:
                    self._discard(letter)

    def _next(self) -> Letter | None:
        with self._news:
            self._news.wait_for(lambda: self._waiting or self._closing)
            return self._waiting[0] if self._waiting and not self._over.is_set() else None

    def _discard(self, letter: Letter) -> None:
        letter.path.unlink(missing_ok=True)
        if letter in self._waiting:  # else it gave way while it was on its way
            self._waiting.remove(letter)


def letters(folder: Path) -> list[Path]:
    """What waits in a folder, oldest first."""
    return sorted(folder.glob("[0-9]*.json"))


def deliver(folder: Path, open_run: Opener, uri: str, patience: float, on_wait: Callable[[str], None]) -> None:
    """Deliver what a run that has ended left behind.

    Raises:
        UserError: the server does not answer as long as patience lasts, or refuses.
    """
    if not letters(folder):
        return
    if left := Outbox(folder, open_run, uri).close(patience, on_wait):
        raise UserError(
            f"MLflow at {uri} does not answer; {left} records are kept in {folder}. Start it, and continue (--resume, "
            "or the same --name): they are delivered then"
        )


def _hand_over(run: Run, letter: Mapping[str, Any]) -> None:
    match letter:
        case {"metrics": metrics, "step": step, "when": when}:
            run.log_metrics(metrics, step, letter.get("tags"), when)
        case {"figure": name, "png": png, "step": step, "when": when}:
            run.log_figure(name, base64.b64decode(png), step, when)
        case {"tags": tags}:
            run.set_tags(tags)
        case {"status": status, "reason": reason, "when": when}:
            run.finish(status, reason, when)


def _read(path: Path) -> dict[str, Any] | None:
    """A letter; None where it has given way, or a power cut left half of it."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None


def _answers(uri: str) -> bool:
    try:
        check_server(uri)
    except UserError:
        return False
    return True
