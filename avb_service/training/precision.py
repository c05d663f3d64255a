"""Layers' products in bfloat16, and everything else in float32.

Floor 4. A processor with such instructions multiplies in bfloat16 several times as fast, and sums in float32 (Kalamkar
et al. 2019). Cast are the factors of a layer's product, and what comes out is cast back: activations, latents, losses,
log-densities, gradients and weights are float32, and so are all likelihoods, which are not found in training.
"""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, ParamSpec, TypeVar

import torch
from torch.nn.functional import conv2d, conv_transpose2d, linear
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

P = ParamSpec("P")
T = TypeVar("T")

LAYERS = {linear, conv2d, conv_transpose2d, torch.bmm}  # what the networks multiply by


class InBfloat16(TorchFunctionMode):
    """Layers of float32 multiply in bfloat16 while this is entered."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        """A call of torch, with its factors cast if it is a layer's."""
        if func not in LAYERS:
            return func(*args, **(kwargs or {}))
        args, kwargs = tree_map_only(torch.Tensor, torch.Tensor.bfloat16, (args, kwargs or {}))
        return func(*args, **kwargs).float()


def in_precision(precision: Callable[[], str], function: Callable[P, T]) -> Callable[P, T]:
    """A function, such as a player's objective, whose layers multiply as `precision` says when it is called."""

    def called(*args: P.args, **kwargs: P.kwargs) -> T:
        with InBfloat16() if precision() == "bf16" else nullcontext():
            return function(*args, **kwargs)

    return called


def has_bfloat16(device: torch.device) -> bool:
    """Whether a device has instructions for it, and does not emulate them."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()  # torch 2.11 has none
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))
