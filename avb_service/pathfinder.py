"""A Gaussian near a density, found on the way to its mode.

Floor 1.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd.functional import hessian

from avb_service.errors import UserError
from avb_service.seeding import generator

CLIMB = 200  # steps of L-BFGS at the most
EVALUATIONS = 25  # of the density in a step, at the most
STILL = 1e-8  # a step shorter than this is the last
DRAWS = 128  # that tell which Gaussian is the nearest
FLAT = 1e-12  # of the largest curvature; a density that bends less in some direction has no Gaussian


def pathfinder(log_p: Callable[[Tensor], Tensor], start: Tensor) -> tuple[Tensor, Tensor]:
    """The mean m, [D], and the factor L, [D, D], of the Gaussian N(m, L L^T) that is nearest to a density.

    L-BFGS climbs from a start. Wherever it passes, Newton's step and the inverse curvature make a Gaussian; the one
    with the highest ELBO, by the same draws for all, is taken. That is the one at the mode where the density is
    near a Gaussian, and one before it where the density rises without bound into a funnel.

    Args:
        log_p: log density of points [..., D], [...]; it need not be normalised.
        start: [D], in double precision.

    Raises:
        UserError: the density is not finite at the start, or curved upward or flat wherever the climb has passed.

    Source: Zhang, Carpenter, Gelman & Vehtari 2022, "Pathfinder: parallel quasi-Newton variational inference",
        algorithm 1, with the exact curvature in place of L-BFGS's estimate of it.
    """
    if not log_p(start).isfinite():
        raise UserError(
            f"the log joint is {log_p(start).item()} at the start, where it has to be finite: {start.tolist()}"
        )
    path = _climb(log_p, start)
    noise = torch.randn(DRAWS, len(start), generator=generator("cpu", "pathfinder"), dtype=start.dtype)
    found = [(mean, factor) for point in path for mean, factor in _gaussian(log_p, point)]
    bounds = torch.stack([start.new_tensor(-math.inf), *(_elbo(log_p, *each, noise) for each in found)])
    if not bounds.amax().isfinite():
        last = path[-1]
        raise UserError(
            f"no mode was found: after {len(path) - 1} steps from {start.tolist()} the log joint is "
            f"{log_p(last).item():.6g} at {last.tolist()}, and nowhere on the way did it curve downward in all "
            "directions. It may be unbounded, or flat in some direction: give every unknown a proper prior"
        )
    return found[int(bounds.argmax()) - 1]


def _climb(log_p: Callable[[Tensor], Tensor], start: Tensor) -> list[Tensor]:
    """Points on the way up, the start among them."""
    point = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([point], max_iter=1, max_eval=EVALUATIONS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = -log_p(point)
        value.backward()
        return value

    path = [start]
    for _ in range(CLIMB):
        optimizer.step(loss)
        here = point.detach().clone()
        if not log_p(here).isfinite() or (here - path[-1]).abs().amax() < STILL:
            break
        path.append(here)
    return path


def _gaussian(log_p: Callable[[Tensor], Tensor], point: Tensor) -> list[tuple[Tensor, Tensor]]:
    """The mean and factor that value, slope and curvature at a point make; none where it does not curve downward."""
    here = point.clone().requires_grad_()
    (slope,) = torch.autograd.grad(log_p(here), here)
    values, vectors = torch.linalg.eigh(-hessian(log_p, point))
    if not (values.isfinite().all() and values[0] > FLAT * values[-1]):
        return []
    covariance = (vectors / values) @ vectors.mT
    return [(point + covariance @ slope, torch.linalg.cholesky(covariance))]


def _elbo(log_p: Callable[[Tensor], Tensor], mean: Tensor, factor: Tensor, noise: Tensor) -> Tensor:
    """E[log p] - E[log q], up to a constant; -inf where the density is not finite at a draw."""
    log_q = -0.5 * noise.square().sum(-1) - factor.diagonal().log().sum()
    bound = (log_p(mean + noise @ factor.mT) - log_q).mean()
    return bound if bound.isfinite() else bound.new_tensor(-math.inf)
