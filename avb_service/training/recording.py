"""A slice's play written down as one program of tensors.

Floor 4. The play is run once under `make_fx`, which writes down every operation of forward and backward pass, whatever
Python code called it: there is nothing left of modules, distributions and autograd, and nothing to guard. Three things
keep the record true. What changes between two plays is an input: the batch, the round, parameters and buffers. Random
draws are inputs as well, drawn before the program by the same calls in the same order, so the noise is that of the play
that was recorded (and large draws are slow inside of compiled programs). And the play is recorded twice, of different
data in different rounds with different parameters: what asks for a number of these is refused, since the program would
hold the answer for ever.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_unflatten

from avb_service.algorithm import Batch
from avb_service.training.turn import Played, Turn


class Uncapturable(Exception):
    """Why a play cannot be recorded."""


@dataclass(frozen=True)
class Draw:
    """A call that draws random numbers."""

    operation: OpOverload
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def __call__(self) -> Tensor:
        """Fresh numbers, the very ones that the recorded play would draw."""
        if _in_place(self.operation):
            return self.operation(torch.empty_like(self.args[0]), *self.args[1:], **self.kwargs)
        return self.operation(*self.args, **self.kwargs)

    @property
    def law(self) -> list[Any]:
        """What the numbers depend on besides the seed: shapes, and values of tensors that are parameters of the law."""
        leaves, _ = tree_flatten((self.args, self.kwargs))
        shape_only = _in_place(self.operation) or "_like" in self.operation.name()
        return [leaf.shape if shape_only and leaf is self.args[0] else leaf for leaf in leaves]

    def alike(self, other: "Draw") -> bool:
        """Whether both draw from one law."""
        mine, its = self.law, other.law
        return (
            self.operation == other.operation
            and len(mine) == len(its)
            and all(
                torch.equal(a, b) if isinstance(a, Tensor) and isinstance(b, Tensor) else a == b
                for a, b in zip(mine, its, strict=True)
            )
        )


@dataclass(frozen=True)
class Record:
    """A play as a program.

    Attributes:
        program: a function of (*batch, *noise, *held), which gives the gradient, the report and the statistics.
        held: parameters, buffers and constants.
        draws: of the noise, in their order.
        played: what it gave when it was recorded.
    """

    program: GraphModule
    held: list[Tensor]
    draws: list[Draw]
    played: Played


def record(turn: Turn, algorithm: nn.Module, batch: Batch) -> Record:
    """Write down a turn's play.

    Args:
        turn: whose slices are played.
        algorithm: all of the game.
        batch: a slice; all others have its shape.

    Raises:
        Uncapturable: it asks for a number, or draws from a law that depends on parameters or data.
    """
    played, draws = _listen(turn, batch, seed=1)
    graph, held = _record(turn, batch, draws)
    with _disturbed(algorithm, batch) as other:
        _, others = _listen(turn, other, seed=2)
        again, held_again = _record(turn, other, others)
    if len(others) != len(draws):
        raise Uncapturable(f"it draws {len(draws)} times from some data and {len(others)} times from others")
    if odd := [a for a, b in zip(draws, others, strict=True) if not a.alike(b)]:
        raise Uncapturable(f"{odd[0].operation} draws from a law that depends on parameters or data")
    if graph.code != again.code or not _same(held, held_again, list(algorithm.state_dict().values())):
        raise Uncapturable("it holds a number that depends on parameters, data or the round")
    return Record(graph, held, draws, played)


def first_line(error: Exception) -> str:
    """What an error says, without the pages that torch adds."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


class _Listening(TorchDispatchMode):
    """Notes every draw of random numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.draws: list[Draw] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        if torch.Tag.nondeterministic_seeded in func.tags:
            kept = [a.detach().clone() if isinstance(a, Tensor) else a for a in args]
            self.draws.append(Draw(func, tuple(kept), dict(kwargs or {})))
        return func(*args, **(kwargs or {}))


class _Replacing(TorchDispatchMode):
    """Gives out noise in the place of draws, in their order."""

    def __init__(self, noise: Sequence[Tensor]) -> None:
        super().__init__()
        self._noise = iter(noise)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return func(*args, **(kwargs or {}))
        return args[0].copy_(next(self._noise)) if _in_place(func) else next(self._noise)


def taken_apart(batch: Batch) -> tuple[list[Tensor], Callable[[Sequence[Tensor]], Batch]]:
    """A batch's tensors but for labels, which are for pictures, and how a batch is made of such tensors."""
    inputs, layout = tree_flatten((batch.x, batch.round, batch.shared, () if batch.other is None else batch.other))

    def rebuilt(tensors: Sequence[Tensor]) -> Batch:
        x, round_, shared, other = tree_unflatten(tensors, layout)
        return Batch(x, None, round_, shared, None if batch.other is None else other)

    return inputs, rebuilt


def _in_place(operation: OpOverload) -> bool:
    return operation._schema.is_mutable


def _record(turn: Turn, batch: Batch, draws: Sequence[Draw]) -> tuple[GraphModule, list[Tensor]]:
    """A play as a program of (*batch, *noise, *held), and the tensors that it holds: parameters, buffers, constants.

    Raises:
        Uncapturable: it asks the device for a number.
    """
    inputs, rebuilt = taken_apart(batch)

    def play(*given: Tensor) -> list[Tensor]:
        with _Replacing(given[len(inputs) :]):
            played = turn.eager(rebuilt(given[: len(inputs)]))
        return [*played.gradient, played.report, *played.statistics.values()]

    try:
        graph = make_fx(play)(*inputs, *(draw() for draw in draws))
    except RuntimeError as error:
        raise Uncapturable(first_line(error)) from error
    return graph, _lift(graph)


def _same(held: Sequence[Tensor], again: Sequence[Tensor], state: Sequence[Tensor]) -> bool:
    """Whether two records hold the same tensors: the state's very own, and constants of the same values."""
    own = {(tensor.data_ptr(), tensor.shape) for tensor in state}
    return all(
        (a.data_ptr(), a.shape) == (b.data_ptr(), b.shape) if (a.data_ptr(), a.shape) in own else torch.equal(a, b)
        for a, b in zip(held, again, strict=True)
    )


def _listen(turn: Turn, batch: Batch, seed: int) -> tuple[Played, list[Draw]]:
    """A play and its draws, under a seed of no meaning: only the law of the draws is asked for."""
    with torch.random.fork_rng([batch.x.device] if batch.x.is_cuda else []), _Listening() as listening:
        torch.manual_seed(seed)
        return turn.eager(batch), listening.draws


@contextmanager
def _disturbed(algorithm: nn.Module, batch: Batch) -> Iterator[Batch]:
    """Other data in another round, and other parameters and buffers for a while."""
    state = [tensor for tensor in algorithm.state_dict().values() if tensor.is_floating_point()]
    kept = [tensor.clone() for tensor in state]
    inputs, rebuilt = taken_apart(batch)
    other = [0.9 - 0.7 * each if each.is_floating_point() else each.flip(0) for each in inputs]  # on both sides of 1/2
    try:
        for tensor in state:
            tensor.mul_(1.25).add_(0.01)
        yield rebuilt(other)
    finally:
        for tensor, before in zip(state, kept, strict=True):
            tensor.copy_(before)


def _lift(graph: GraphModule) -> list[Tensor]:
    """Make inputs of the parameters and buffers that a program holds, behind its others; gives them in that order."""
    held: dict[str, tuple[Node, Tensor]] = {}
    last = [node for node in graph.graph.nodes if node.op == "placeholder"][-1]
    for node in [node for node in graph.graph.nodes if node.op == "get_attr"]:
        name = str(node.target)
        if name not in held:
            with graph.graph.inserting_after(last):
                last = graph.graph.placeholder(f"held_{len(held)}")
            held[name] = last, getattr(graph, name).detach()
        node.replace_all_uses_with(held[name][0])
        graph.graph.erase_node(node)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return [tensor for _, tensor in held.values()]
