"""Affine maps of images, against torch's own."""

import pytest
import torch
from torch.nn.functional import affine_grid, grid_sample

from avb_service.networks.warp import warp


@pytest.mark.parametrize("shape", [(5, 1, 8, 8), (3, 3, 7, 12), (2, 1, 1, 9)])
def test_an_image_is_sampled_as_torch_does_it(shape):
    torch.manual_seed(0)
    x = torch.rand(shape, dtype=torch.float64, requires_grad=True)
    maps = (torch.eye(2, 3) + 0.3 * torch.randn(shape[0], 2, 3)).double().requires_grad_()
    theirs = grid_sample(x, affine_grid(maps, list(shape), align_corners=False), align_corners=False)
    torch.testing.assert_close(warp(x, maps), theirs)
    weight = torch.rand_like(theirs)
    mine, expected = (torch.autograd.grad((y * weight).sum(), (x, maps)) for y in (warp(x, maps), theirs))
    for one, other in zip(mine, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_the_identity_leaves_an_image_as_it_is():
    x = torch.rand(2, 3, 6, 5)
    torch.testing.assert_close(warp(x, torch.eye(2, 3).expand(2, 2, 3)), x)
