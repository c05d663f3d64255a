"""The parameters of a game in one tensor, and each player's gradient in few.

Floor 4. What is one tensor is clipped and stepped by one operation; but to copy the gradient of a large matrix takes
longer than an operation of its own.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from avb_service.algorithm import Player

ALIGNED = 16  # numbers: on a GPU, a matrix that begins elsewhere is multiplied by slower kernels
LARGE = 2**15  # numbers: a parameter of so many has a gradient by itself
BY_SHAPE = {"Adafactor"}  # optimizers whose step depends on which numbers make up a matrix

State = dict[str, Any]


def owned(player: Player) -> list[nn.Parameter]:
    """The parameters that a player's turn updates, each once."""
    return list(dict.fromkeys(p for network in player.networks for p in network.parameters()))


def flatten(players: Sequence[Player]) -> Tensor:
    """Move the parameters of all players into one tensor, which is returned, and of which they become views.

    Those that the same players own lie side by side, the large ones behind, so that each player's others are few runs,
    most often one.
    """
    owners: dict[nn.Parameter, list[int]] = {}
    for number, player in enumerate(players):
        for parameter in owned(player):
            owners.setdefault(parameter, []).append(number)
    ordered = sorted(owners, key=lambda parameter: (owners[parameter], parameter.numel() >= LARGE))
    whole, start = joined(p.detach() for p in ordered), 0
    for parameter in ordered:
        parameter.data = whole[start : start + parameter.numel()].view_as(parameter)
        start += room(parameter)
    return whole


def joined(tensors: Iterable[Tensor]) -> Tensor:
    """Tensors one after the other as one vector, with zeros behind each up to where the next may begin.

    One that lacks no zeros is not copied.
    """
    parts: list[Tensor] = []
    for tensor in tensors:
        parts.append(tensor.reshape(-1))
        if gap := room(tensor) - tensor.numel():
            parts.append(tensor.new_zeros(gap))
    return torch.cat(parts) if len(parts) > 1 else parts[0]


def room(tensor: Tensor) -> int:
    """Numbers from where a parameter begins to where the next may."""
    return -(-tensor.numel() // ALIGNED) * ALIGNED


@dataclass(frozen=True)
class _Piece:
    """What an optimizer steps by one operation: a run of parameters that lie side by side, or one of them."""

    tensor: nn.Parameter
    parameters: list[nn.Parameter]


class Slots:
    """A player's parameters as its optimizer sees them.

    Args:
        player: whose parameters have been flattened.
    """

    def __init__(self, player: Player) -> None:
        self._numbers = {parameter: str(number) for number, parameter in enumerate(owned(player))}
        self.parameters = sorted(self._numbers, key=lambda p: p.storage_offset())
        self._turn = player.turn
        by_shape = player.turn.optimizer in BY_SHAPE
        self._pieces = [_Piece(p, [p]) for p in self.parameters] if by_shape else _runs(self.parameters)
        self.size = sum(map(room, self.parameters))  # numbers of a gradient
        self.pieces = len(self._pieces)  # tensors of a gradient
        self.optimizer = player.turn.build([piece.tensor for piece in self._pieces])

    def gathered(self, gradients: Iterable[Tensor]) -> list[Tensor]:
        """A gradient, vectors that `step` takes, of those of `parameters`."""
        each = iter(gradients)
        return [joined(islice(each, len(piece.parameters))) for piece in self._pieces]

    def step(self, gradient: Sequence[Tensor]) -> None:
        """Step by a gradient, as `gathered` gives it."""
        for piece, part in zip(self._pieces, gradient, strict=True):
            piece.tensor.grad = part[: piece.tensor.numel()].view_as(piece.tensor)
        self.optimizer.step()

    def state(self) -> State:
        """The optimizer's state by parameter, numbered in the order of `owned`: the same, however they are laid out."""
        states, found = self.optimizer.state_dict()["state"], {}
        for index, piece in enumerate(self._pieces):
            start = 0
            for p in piece.parameters:
                found[self._numbers[p]] = {
                    name: value[start : start + p.numel()].view_as(p) if name in self._laid_out else value
                    for name, value in states.get(index, {}).items()
                }
                start += room(p)
        return {number: found[number] for number in self._numbers.values() if found[number]}

    def load(self, state: State) -> None:
        """The inverse of `state`; what the configuration says stays."""
        states: dict[int, State] = {}
        for index, piece in enumerate(self._pieces):
            kept = [state[self._numbers[p]] for p in piece.parameters if self._numbers[p] in state]
            if 0 < len(kept) < len(piece.parameters):
                absent = len(piece.parameters) - len(kept)
                raise ValueError(f"an optimizer's state lacks {absent} of {len(piece.parameters)} parameters")
            if kept:
                states[index] = {
                    name: joined(each[name] for each in kept) if name in self._laid_out else value
                    for name, value in kept[0].items()
                }
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": states, "param_groups": groups})

    @cached_property
    def _laid_out(self) -> set[str]:
        """What the optimizer keeps a number of for each number of a run, and has to be cut as the run is."""
        if self._turn.optimizer in BY_SHAPE:
            return set()
        probe = nn.Parameter(torch.zeros(ALIGNED))
        probe.grad = torch.zeros_like(probe)
        (optimizer := self._turn.build([probe])).step()
        return {name for name, value in optimizer.state[probe].items() if getattr(value, "shape", None) == probe.shape}


def _runs(parameters: Sequence[nn.Parameter]) -> list[_Piece]:
    """Parameters in the order in which they lie: a large one by itself, the others in as few runs as there are gaps."""
    runs: list[list[nn.Parameter]] = []
    for p in parameters:
        last = runs[-1][-1] if runs else p
        if max(last.numel(), p.numel()) >= LARGE or last.storage_offset() + room(last) != p.storage_offset():
            runs.append([])
        runs[-1].append(p)
    return [_Piece(nn.Parameter(_whole(run)), run) for run in runs]


def _whole(run: Sequence[nn.Parameter]) -> Tensor:
    """The memory from the first parameter of a run to the end of the last."""
    first = run[0].detach()
    return first.as_strided((sum(map(room, run)),), (1,), first.storage_offset())
