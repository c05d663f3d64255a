"""What holds for every trunk, and for every observation model.

Floor 9.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from avb_service.distributions import DataSpec, Observation, Values
from avb_service.networks.trunks import ImageShape, Trunk
from avb_service.seeding import seeded

SHAPES: tuple[ImageShape, ...] = ((1, 1, 6), (1, 8, 8), (3, 7, 9))  # a vector, a small image, an odd one in colour
DRAWS = 4000
FAR = 0.05  # of data between 0 and 1
SIGMAS = 5  # standard errors, beyond which a mean of draws is not by chance


def check_trunk(trunk: Trunk, shapes: Sequence[ImageShape] = SHAPES) -> None:
    """Make sure that a trunk reads and writes data of any shape, a datum at a time.

    Args:
        trunk: its section.
        shapes: of data, (C, H, W), for which it is tried.

    Raises:
        AssertionError: shapes are wrong, a datum's numbers depend on the others of its batch, a parameter gets no
            gradient, or outputs do not start around the bias.
    """
    for shape in shapes:
        with seeded(0, "check"):
            x, z = torch.rand(5, *shape), torch.randn(5, 4)
            features, width = trunk.features(shape)
            bias = torch.randn(2, *shape)
            _reads(features, x, (5, width), f"features of {shape}")
            _reads(generator := trunk.generator(4, 2, shape, bias), z, (5, 2, *shape), f"generator of {shape}")
            far = (generator(0.01 * z).mean((0, -2, -1)) - bias.mean((-2, -1))).abs().max().item()
            assert far < 1, f"generator of {shape}: outputs start {far:.2g} from the bias, averaged over pixels"


def _reads(module: nn.Module, given: Tensor, shape: tuple[int, ...], what: str) -> None:
    """The module's outputs have the shape, are a function of each datum alone, and depend on every parameter."""
    found = module(given)
    assert tuple(found.shape) == shape, f"{what}: given {tuple(found.shape)}, expected {shape}"
    kept = [name for name, each in module.named_modules() if isinstance(each, _BatchNorm)]
    assert not kept, f"{what}: {kept} keep statistics of a batch; use torch.nn.GroupNorm"
    alone = torch.cat([module(each[None]) for each in given])
    gap = (alone - found).abs().max().item()
    assert gap < 1e-4, f"{what}: a datum's numbers depend on the others of its batch, by {gap:.1e}"
    if found.requires_grad:  # affine features have no parameters
        found.square().sum().backward()
    unused = [name for name, p in module.named_parameters() if p.grad is None]
    assert not unused, f"{what}: the parameters {unused} have no influence"


def check_observation(observation: Observation, values: Values, levels: int = 255) -> None:
    """Make sure that an observation model is a distribution over such data, with the mean that it says.

    Args:
        observation: its section.
        values: of data that it is meant for.
        levels: of grey, where these are levels.

    Raises:
        AssertionError: it objects to the data, shapes are wrong, its draws are not such data or have another mean, its
            density of its own draws is not finite, or its bias gives another mean than it is asked for.
    """
    assert observation.objection(values) is None, observation.objection(values)
    shape, white = (1, 2, 3), {"binary": 1, "levels": levels, "real": 0}[values]
    mean = torch.linspace(0.2, 0.8, 6).view(shape)
    with seeded(0, "check"), torch.no_grad():
        model = observation.build(DataSpec(shape, values, white, mean))
        bias = model.bias(mean)
        assert tuple(bias.shape) == (model.planes, *shape), f"bias: given {tuple(bias.shape)}, planes {model.planes}"
        p = model((bias + 0.1 * torch.randn(4, *bias.shape)).requires_grad_(False))
        assert (tuple(p.batch_shape), tuple(p.event_shape)) == ((4,), shape), f"p(x|z): event shape {p.event_shape}"
        draws = p.sample((DRAWS,))
        _are(draws, values if getattr(p.support, "is_discrete", False) else "real", white)
        density: Any = p.log_prob(draws)
        assert density.shape == (DRAWS, 4) and density.isfinite().all(), "log p(x|z) of its own draws is not finite"
        _near(draws, p.mean, "the mean of p(x|z)")
        far = (model(bias[None]).mean[0] - mean).abs().max().item()
        assert far < FAR, f"where the decoder gives the bias, the mean of p(x|z) is {far:.2g} from the one asked for"


def _are(draws: Tensor, values: Values, white: int) -> None:
    """A density is one over all numbers, also where it stands for levels of grey."""
    on_grid = ((draws * white).round() / max(white, 1) - draws).abs().max() < 1e-5
    inside = ((draws >= 0) & (draws <= 1)).all()
    assert draws.isfinite().all(), "draws are not finite"
    assert values == "real" or (on_grid and inside), f"draws are no {values} data: not on the grid of 0 to {white}"


def _near(draws: Tensor, mean: Tensor, what: str) -> None:
    error = draws.std(0) / DRAWS**0.5
    gap = ((draws.mean(0) - mean).abs() / error.clamp(min=1e-4)).max().item()
    assert gap < SIGMAS, f"{what} is {gap:.1f} standard errors from that of draws"
