"""How a player's slices are played: as its method has written them, by torch's compiler, or as a CUDA graph.

Floor 4. The latter two are made of a record (`recording.py`), or of a play that can be recorded.
"""

import logging
import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from avb_service.algorithm import Batch
from avb_service.training.recording import Uncapturable, first_line, record, taken_apart
from avb_service.training.turn import Play, Played, Turn

Run = Callable[..., Sequence[Tensor]]  # (*batch, *noise, *parameters and buffers) -> *gradient, report, *statistics

_log = logging.getLogger(__name__)


class Program:
    """A turn's play, recorded on an example.

    Args: as for `record`, and
        backend: of `torch.compile`; `eager` runs the record operation by operation.

    Raises:
        Uncapturable: as `record` does, or torch's compiler has failed.
    """

    def __init__(self, turn: Turn, algorithm: nn.Module, batch: Batch, backend: str = "inductor") -> None:
        written = record(turn, algorithm, batch)
        self._held, self._draws = written.held, written.draws
        self._statistics, self._pieces = tuple(written.played.statistics), len(written.played.gradient)
        self._run: Run = torch.compile(written.program, fullgraph=True, dynamic=False, backend=backend)
        try:
            with warnings.catch_warnings():  # torch's compiler warns of its own use of torch
                warnings.simplefilter("ignore")
                self(batch)
        except RuntimeError as error:
            raise Uncapturable(f"torch's compiler has failed: {first_line(error)}") from error

    def __call__(self, batch: Batch) -> Played:
        """Play a slice; the generators have been seeded for it."""
        inputs, _ = taken_apart(batch)
        noise = [draw() for draw in self._draws]
        with torch.no_grad():
            given = list(self._run(*inputs, *noise, *self._held))
        gradient, (report, *statistics) = given[: self._pieces], given[self._pieces :]
        return Played(gradient, report, dict(zip(self._statistics, statistics, strict=True)))


class Graph:
    """A turn's play as a CUDA graph: the same operations, launched at once. The same to the bit as played one by one.

    The generator's state is read anew at each replay, so noise is what the seed of the slice says.

    Args: as for `record`.

    Raises:
        Uncapturable: as `record` does, or CUDA cannot record it.
    """

    def __init__(self, turn: Turn, algorithm: nn.Module, batch: Batch) -> None:
        record(turn, algorithm, batch)  # a graph would hold what must not be held, too
        inputs, rebuilt = taken_apart(batch)
        self._inputs = [tensor.clone() for tensor in inputs]
        mine = rebuilt(self._inputs)
        self._graph = torch.cuda.CUDAGraph()
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):  # libraries allocate their workspaces in the first plays
            for _ in range(3):
                turn.eager(mine)
        torch.cuda.current_stream().wait_stream(aside)
        try:
            with torch.cuda.graph(self._graph):
                self._played = turn.eager(mine)
        except RuntimeError as error:
            raise Uncapturable(f"CUDA cannot record it: {first_line(error)}") from error

    def __call__(self, batch: Batch) -> Played:
        """Play a slice; the generators have been seeded for it."""
        for mine, given in zip(self._inputs, taken_apart(batch)[0], strict=True):
            mine.copy_(given)
        self._graph.replay()
        gradient, report, statistics = self._played  # the next replay writes to these
        return Played(
            [piece.clone() for piece in gradient], report.clone(), {name: t.clone() for name, t in statistics.items()}
        )


def compiled(algorithm: nn.Module, turn: Turn, batch: Batch) -> Play:
    """A turn's program, compiled; or the turn as the method has written it, where it cannot be recorded.

    Args:
        algorithm: all of the game.
        turn: whose slices are played.
        batch: the first of them.
    """
    return _or_as_written(Program, algorithm, turn, batch)


def graphed(algorithm: nn.Module, turn: Turn, batch: Batch) -> Play:
    """A turn's CUDA graph; or the turn as the method has written it, where it cannot be recorded. As `compiled`."""
    return _or_as_written(Graph, algorithm, turn, batch)


def as_written(algorithm: nn.Module, turn: Turn, batch: Batch) -> Play:
    """A turn that plays as its method has written it. As `compiled`."""
    return turn.eager


PREPARE = {"off": as_written, "graph": graphed, "compile": compiled}


def _or_as_written(kind: "type[Program | Graph]", algorithm: nn.Module, turn: Turn, batch: Batch) -> Play:
    try:
        return kind(turn, algorithm, batch)
    except Uncapturable as reason:
        names = " and ".join(f"'{player.name}'" for player in turn.players)
        _log.warning("player %s is not captured and plays as it is written: %s", names, reason)
        return turn.eager
