"""Affine maps of images.

Floor 1.
"""

import torch
from torch import Tensor
from torch.nn.functional import affine_grid


def warp(x: Tensor, maps: Tensor) -> Tensor:
    """Images [B, C, H, W], y(p) = x(A p) for each place p, bilinear; what comes in from outside is 0.

    As matrix products: on a GPU, the gradient of torch's grid_sample is not the same to the bit from run to run.

    Args:
        x: images.
        maps: A, [B, 2, 3], of places (across, down, 1) in halves of the image's sides from its centre.

    Source: Jaderberg et al. 2015, eq. 1 and 5.
    """
    height, width = x.shape[-2:]
    across, down = affine_grid(maps, list(x.shape), align_corners=False).unbind(-1)
    columns = torch.einsum("bchw,bijw->bchij", x, _tents(across, width))
    return torch.einsum("bchij,bijh->bcij", columns, _tents(down, height))


def _tents(place: Tensor, size: int) -> Tensor:
    """What each of so many pixels in a row contributes to places from -1 to 1, [..., size]."""
    pixel = ((place + 1) * size - 1) / 2
    return (1 - (pixel[..., None] - torch.arange(size, device=place.device)).abs()).relu()
