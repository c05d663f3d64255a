"""Log-likelihoods without sampling error: where the latent space is small enough, or the model simple enough.

Floor 5.
"""

import math
from functools import cache
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import Independent, LowRankMultivariateNormal, Normal
from torch.nn.functional import max_pool1d, max_pool2d

from avb_service.algorithm import JointDensity
from avb_service.discrete import DiscreteCodes, arrangements
from avb_service.errors import UserError
from avb_service.likelihood.needs import has_standard_normal_prior, others, prior_name
from avb_service.likelihood.scoring import Columns, Scorer, evaluating
from avb_service.maths import gaussian_marginals
from avb_service.records import NATS, Key, Kind
from avb_service.seeding import generator

HALF_WIDTH = 8.0  # of the box, in standard deviations of the prior, whose density is e^-32 of its peak there
COARSE = {1: 1024, 2: 256}  # cells along an axis, for all data alike
DEEP = 50.0  # nats below the best point of a datum where nothing is that matters
RESOLVED = 0.1  # nats that a value moves by, below which the masses of its cells can be believed
LARGEST = 2**23  # points in all cells of a block
TOLERANCE = 1e-5  # nats per datum, mean over data
POOL = {1: max_pool1d, 2: max_pool2d}

STATES = 2**16
ROWS = 1024  # decoder evaluations at a time

LINEAR = 1e-4  # relative error of a mean that counts as affine: float32 products leave 1e-6


def quadrature(model: JointDensity) -> Scorer:
    """Log p(x) = log int p(z) p(x|z) dz on a grid, for one or two latent dimensions.

    All data share a coarse grid; the cells that matter to a datum are then halved for it alone, until its value neither
    moves when the grid is doubled nor when it is shifted by half a cell. The trapezoid rule converges exponentially
    here, so that what is left is far below what these two show.

    The columns are `doubling` and `shift`, the last moves, and `outside`, the share of points on the border of the
    box, all in nats; `cells` along an axis. The kind is `exact` where the means of the first three over all data are
    below 1e-5, else `estimate`.

    Args:
        model: with D <= 2 and a factorised Gaussian prior.

    Raises:
        UserError: D > 2, or another prior.

    Source: Trefethen & Weideman 2014, "The exponentially convergent trapezoidal rule".
    """
    marginals = gaussian_marginals(model.prior())
    if marginals is None:
        raise UserError(
            f"quadrature needs a factorised Gaussian prior, this one is {prior_name(model)}: use {others(model)}"
        )
    if (dim := len(marginals.loc)) > 2:
        raise UserError(f"quadrature needs at most 2 latent dimensions, this model has {dim}: use {others(model)}")
    points = COARSE[dim] ** dim
    rows = max(ROWS, points // model.example.numel())  # the coarse grid is kept as a whole
    return Scorer(Key("quadrature"), _settled, rows, lambda x: _Grid(model, x, marginals).solve())


def _settled(columns: Columns) -> Kind:
    worst = max(columns[name].mean().item() for name in ("doubling", "shift", "outside"))
    return "exact" if worst < TOLERANCE else "estimate"


class _Cells(NamedTuple):
    """Cells of the coarse grid that are refined, each for one datum: [P] and [P, D], and log of their mass, [P]."""

    datum: Tensor
    corner: Tensor
    log_mass: Tensor


class _Grid:
    """Points over the box around the prior, for each datum of a block.

    Args:
        model: whose p(x,z) is summed.
        x: data [b, ...].
        marginals: of the prior, [D].
    """

    def __init__(self, model: JointDensity, x: Tensor, marginals: Normal) -> None:
        self.model, self.x, self.dim = model, x, len(marginals.loc)
        self.low = marginals.loc - HALF_WIDTH * marginals.scale
        self.cell = 2 * HALF_WIDTH * marginals.scale / COARSE[self.dim]
        # beyond, the points of a cell are no longer different numbers
        self.finest = (self.cell / (64 * torch.finfo(self.low.dtype).eps * self.low.abs())).amin().item()

    def solve(self) -> Columns:
        """Refine until every datum is settled, or there would be too many points."""
        cells, outside = self._coarse()
        halves = list(product((0.0, 0.5), repeat=self.dim))[1:]
        value = self._total(cells.datum, cells.log_mass)
        doubling, shift = torch.full_like(value, math.inf), torch.full_like(value, math.inf)
        split = torch.ones_like(value)  # points of a cell along an axis
        level = 1
        while len(cells.datum) and level < self.finest and len(cells.datum) * (2 * level) ** self.dim <= LARGEST:
            shifted = [self._mass(cells, level, half) for half in halves]
            log_mass = torch.stack([cells.log_mass, *shifted]).logsumexp(0) - self.dim * math.log(2)
            refined, moved = self._total(cells.datum, log_mass), self._total(cells.datum, shifted[-1])
            here = torch.zeros_like(value, dtype=torch.bool).index_fill_(0, cells.datum, True)
            level *= 2
            doubling = torch.where(here, (refined - value).abs(), doubling)
            shift = torch.where(here, (moved - value).abs(), shift)
            value = torch.where(here, refined, value)
            split = split.masked_fill(here, level)
            move = torch.maximum(doubling, shift)
            empty = (move < RESOLVED)[cells.datum] & (log_mass < value[cells.datum] - DEEP)
            kept = (move >= TOLERANCE)[cells.datum] & ~empty
            cells = _Cells(cells.datum[kept], cells.corner[kept], log_mass[kept])
        log_cell = self.cell.double().log().sum()
        return {
            NATS: value + log_cell,
            "doubling": doubling,
            "shift": shift,
            "outside": outside,
            "cells": split * COARSE[self.dim],
        }

    def _coarse(self) -> tuple[_Cells, Tensor]:
        """The cells that matter to each datum, and the share of points on the border, [b]."""
        side = [torch.arange(COARSE[self.dim], device=self.x.device)] * self.dim
        corners = torch.cartesian_prod(*side).reshape(-1, self.dim)
        codes = self.low + corners * self.cell
        parts = [self.model.log_joint(self.x, z[:, None]) for z in codes.split(ROWS)]
        log_joint = torch.cat(parts).double()  # [points, b]
        total, best = log_joint.logsumexp(0), log_joint.amax(0)
        border = ((corners == 0) | (corners == COARSE[self.dim] - 1)).any(-1)
        outside = (log_joint[border].logsumexp(0) - total).exp()
        reach = _reach(log_joint.mT.unflatten(-1, (COARSE[self.dim],) * self.dim)).flatten(1)
        datum, chosen = (reach > best[:, None] - DEEP).nonzero(as_tuple=True)
        return _Cells(datum, corners[chosen], log_joint[chosen, datum]), outside

    def _mass(self, cells: _Cells, level: int, half: tuple[float, ...]) -> Tensor:
        """Log of the mean of p(x,z) over the points of each cell, [P], with the grid shifted by part of its step."""
        steps = [(torch.arange(level, device=self.x.device) + offset) / level for offset in half]
        inner = torch.cartesian_prod(*steps).reshape(-1, 1, self.dim).to(self.low)
        size = max(1, ROWS * len(self.x) // len(inner))
        masses = []
        for datum, corner in zip(cells.datum.split(size), cells.corner.split(size), strict=True):
            total = torch.full((len(datum),), -math.inf, dtype=torch.float64, device=self.x.device)
            for part in inner.split(ROWS * len(self.x)):
                z = self.low + (corner + part) * self.cell
                total = torch.logaddexp(total, self.model.log_joint(self.x[datum], z).double().logsumexp(0))
            masses.append(total - math.log(len(inner)))
        return torch.cat(masses)

    def _total(self, datum: Tensor, log_mass: Tensor) -> Tensor:
        """Log of the sum over the cells of each datum, [b]; -inf where there are none."""
        best = log_mass.new_full((len(self.x),), -math.inf).scatter_reduce(0, datum, log_mass, "amax")
        sums = torch.zeros_like(best).index_add(0, datum, (log_mass - best[datum]).exp())
        return best + sums.log()


def _reach(values: Tensor) -> Tensor:
    """What log p(x,z) may rise to between the points of a grid [b, n] or [b, n, n], where it bends as it does at them.

    So a ridge that is narrower than the grid is not lost between its points.
    """
    dim = values.dim() - 1
    bend = torch.zeros_like(values)
    for step in ((1,),) if dim == 1 else ((1, 0), (0, 1), (1, 1), (1, -1)):
        axes, back = tuple(range(1, dim + 1)), tuple(-k for k in step)
        second = values.roll(step, axes) + values.roll(back, axes) - 2 * values
        bend = torch.maximum(bend, second.abs())
    inner = (slice(None),) + (slice(1, -1),) * dim
    edge = torch.zeros_like(bend)
    edge[inner] = bend[inner]  # what was rolled over the border is no neighbour
    return POOL[dim]((values + edge / 2)[:, None], 5, stride=1, padding=2)[:, 0]


def ppca(model: JointDensity) -> Scorer:
    """Log N(x; mu, W W' + diag s^2), for p(x|z) = N(W z + mu, diag s^2): probabilistic PCA, factor analysis.

    That the decoder is of that form is tried out, at the origin, along the axes, and at random points far and near.

    Args:
        model: with prior N(0, I).

    Raises:
        UserError: another prior, another observation model, a scale that depends on z, or a mean that is not affine.

    Source: Tipping & Bishop 1999, eq. 4.
    """
    mean, factor, scale = _affine(model)
    evidence = LowRankMultivariateNormal(mean, factor, scale.square(), validate_args=False)
    return Scorer(Key("ppca"), "exact", 1, lambda x: {NATS: evidence.log_prob(x.flatten(1).double())})


def _affine(model: JointDensity) -> tuple[Tensor, Tensor, Tensor]:
    """The mean [N], W [N, D] and s [N] of a decoder that is affine, float64."""
    if not has_standard_normal_prior(model):
        raise _not_linear(model, f"this prior is {prior_name(model)}")
    dim, like = model.prior().event_shape[0], model.prior().mean
    spread = torch.tensor([0.1, 1.0, 10.0]).repeat_interleave(8)[:, None]
    elsewhere = spread * torch.randn(24, dim, generator=generator("cpu", "ppca"))
    codes = torch.cat([torch.zeros(1, dim), torch.eye(dim), elsewhere]).to(like)
    with evaluating(model):
        base = gaussian_marginals(model.likelihood(codes))
    if base is None:
        raise _not_linear(model, "this observation model is not Gaussian")
    means, scales = base.loc.flatten(1).double(), base.scale.expand_as(base.loc).flatten(1).double()
    if not torch.allclose(scales, scales[:1].expand_as(scales), rtol=1e-5, atol=0):
        raise _not_linear(model, "this noise scale depends on z")
    mean, factor = means[0], (means[1 : dim + 1] - means[0]).mT
    error = (means[dim + 1 :] - mean - codes[dim + 1 :].double() @ factor.mT).abs().amax()
    size = (means - mean).abs().amax()
    if not (error <= LINEAR * size and size.isfinite()):
        raise _not_linear(model, f"this mean is not affine in z, off by {error:.2g} where it moves by {size:.2g}")
    return mean, factor, scales[0]


def _not_linear(model: JointDensity, reason: str) -> UserError:
    return UserError(f"ppca needs p(x|z) = N(W z + mu, diag s^2) and the prior N(0, I); {reason}: use {others(model)}")


def enumeration(model: JointDensity) -> Scorer:
    """Log p(x) = log sum_z p(z) p(x|z) over all states of a discrete code.

    Args:
        model: with a prior of at most 2^16 states.

    Raises:
        UserError: a prior that cannot be enumerated, or too many states; names the number.
    """
    values, parts = _parts(model)
    count, shape = len(values) ** parts, model.prior().event_shape

    @cache
    def codes() -> Tensor:  # [S, *event shape]; once they are needed
        return arrangements(values, parts).reshape(count, *shape)

    def score(x: Tensor) -> Columns:
        total = x.new_full((len(x),), -math.inf, dtype=torch.float64)
        for z in codes().to(x.device).split(ROWS):
            total = torch.logaddexp(total, model.log_joint(x, z[:, None]).double().logsumexp(0))
        return {NATS: total}

    return Scorer(Key("enumeration"), "exact", min(count, ROWS), score)


def _parts(model: JointDensity) -> tuple[Tensor, int]:
    """What each part of a code can be, [n, ...], and how many parts a code has."""
    prior = model.prior()
    base = prior.base_dist if isinstance(prior, Independent) else prior
    if not base.has_enumerate_support:
        raise UserError(
            f"enumeration needs a prior over finitely many codes, this one is {prior_name(model)}: use {others(model)}"
        )
    if isinstance(base, DiscreteCodes):
        values, parts = base.values, base.parts
    else:
        values = base.enumerate_support(expand=False).reshape(-1, *base.event_shape)
        parts = math.prod(base.batch_shape)
    if (count := len(values) ** parts) > STATES:
        raise UserError(
            f"enumeration takes at most 2^16 = {STATES} codes, this prior has {len(values)}^{parts} = {count}: use iwae"
        )
    return values, parts
