"""Annealing from a Gaussian to the posterior by Hamiltonian Monte Carlo.

Floor 5. The path is f_b(z) = r(z)^(1-b) p(x,z)^b, b from 0 to 1 (Neal 2001, "Annealed importance sampling"). All motion
is in coordinates u = L^-1 (z - m) in which r is N(0, I), so one step size does for all directions.
"""

import math
from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor
from torch.distributions import Distribution
from torch.nn.functional import avg_pool1d, interpolate, pad

from avb_service.algorithm import JointDensity
from avb_service.config import Config
from avb_service.distributions import likelihood_score
from avb_service.maths import mean_and_factor

TARGET = 0.8  # acceptance at which HMC is most efficient, within a broad optimum
FIRST_STEP = 0.5
SIGMOID = 4.0
STRIDES = 200  # temperatures at most at which step sizes are learned


class AnnealConfig(Config):
    """How chains are annealed.

    Attributes:
        temperatures: T, how many steps the path is cut into.
        chains: C, for each datum.
        leapfrog: gradients a transition. Few, since T x leapfrog is what it costs, and finer steps of the temperature
            are worth more (docs/likelihoods.md).
    """

    temperatures: Annotated[int, Field(ge=2)] = 100
    chains: Annotated[int, Field(ge=2)] = 8
    leapfrog: Annotated[int, Field(ge=1)] = 2


class State(NamedTuple):
    """Chains for each datum: where they are, [C, b, D], log p(x,z) there, [C, b], and its gradient by u, [C, b, D]."""

    u: Tensor
    log_p: Tensor
    gradient: Tensor


class Annealed(NamedTuple):
    """What chains have done.

    Attributes:
        state: where they ended.
        log_weights: [C, b], float64.
        acceptance: mean over chains and transitions, [b].
        steps: the step sizes of each transition, [T, b].
    """

    state: State
    log_weights: Tensor
    acceptance: Tensor
    steps: Tensor


class Path:
    """The geometric path from r(z|x) to p(x,z).

    Args:
        model: whose posterior is wanted.
        x: data [b, ...].
        r: Gaussians, batch shape [b] or none, event shape [D].

    Raises:
        TypeError: r is no Gaussian.
    """

    def __init__(self, model: JointDensity, x: Tensor, r: Distribution) -> None:
        self.model, self.x = model, x
        if (moments := mean_and_factor(r)) is None:
            raise TypeError(f"cannot anneal from {type(r).__name__}, expected a Gaussian")
        mean, factor = moments
        self.mean, self.factor = mean.expand(len(x), -1), factor.expand(len(x), -1, -1)
        self._log_scale = self.factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        self._constant = 0.5 * math.log(2 * math.pi) * mean.shape[-1]

    def log_r(self, u: Tensor) -> Tensor:
        """Log r(z|x) at u [C, b, D], [C, b]."""
        return -0.5 * u.square().sum(-1) - self._constant - self._log_scale

    def at(self, u: Tensor) -> State:
        """Chains at u [C, b, D]."""
        with torch.enable_grad():
            u = u.detach().requires_grad_()
            log_p = self.model.log_joint(self.x, self.z(u))
            (gradient,) = torch.autograd.grad(log_p.sum(), u)
        return State(u.detach(), log_p.detach(), gradient)

    def gradient(self, u: Tensor) -> Tensor:
        """Of log p(x,z) by u [C, b, D], without log p(x,z) itself."""
        with torch.enable_grad():
            u = u.detach().requires_grad_()
            z = self.z(u)
            parameters, score = likelihood_score(self.model.likelihood(z), self.x)
            log_prior = self.model.prior().log_prob(z)
            (gradient,) = torch.autograd.grad((parameters, log_prior), u, (score, torch.ones_like(log_prior)))
        return gradient

    def draw(self, chains: int) -> State:
        """Chains that start from r."""
        return self.at(torch.randn(chains, *self.mean.shape, dtype=self.mean.dtype, device=self.mean.device))

    def z(self, u: Tensor) -> Tensor:
        """Codes at u, [C, b, D]."""
        return self.mean + torch.einsum("bij,cbj->cbi", self.factor, u)

    def u(self, z: Tensor) -> Tensor:
        """The inverse of `z`."""
        return torch.linalg.solve_triangular(self.factor, (z - self.mean)[..., None], upper=False)[..., 0]

    def log_ratio(self, state: State) -> Tensor:
        """Log p(x,z) - log r(z|x), of which importance weights are made, [C, b], float64."""
        return state.log_p.double() - self.log_r(state.u).double()


def transition(path: Path, state: State, beta: float, step: Tensor, leapfrog: int) -> tuple[State, Tensor]:
    """One HMC move that leaves f_beta invariant; it costs `leapfrog` gradients, since the state keeps its own.

    Args:
        path: r and p.
        state: [C, b].
        beta: temperature.
        step: step sizes [b].
        leapfrog: how many steps.

    Returns:
        The state after it, and the acceptance probabilities [C, b].

    Source: Neal 2011, "MCMC using Hamiltonian dynamics", section 5.3.
    """
    start = torch.randn_like(state.u)
    end, momentum = integrate(path, state, start, beta, step, leapfrog)
    log_accept = _log_density(path, end, beta, momentum) - _log_density(path, state, beta, start)
    log_accept = log_accept.nan_to_num(nan=-math.inf).clamp(max=0.0)  # far out of range: refused
    accepted = torch.rand_like(log_accept).log() < log_accept
    moved = State(
        *(
            torch.where(accepted[(...,) + (None,) * (new.dim() - 2)], new, old)
            for new, old in zip(end, state, strict=True)
        )
    )
    return moved, log_accept.exp()


def integrate(
    path: Path, state: State, momentum: Tensor, beta: float, step: Tensor, leapfrog: int
) -> tuple[State, Tensor]:
    """Leapfrog steps along f_beta: where the chains and their momenta [C, b, D] end; reversible, and volume-preserving.

    Source: Neal 2011, eq. 2.28 to 2.30.
    """
    size, u = step[:, None], state.u
    momentum = momentum + 0.5 * size * _force(u, state.gradient, beta)
    for _ in range(leapfrog - 1):
        u = u + size * momentum
        momentum = momentum + size * _force(u, path.gradient(u), beta)
    end = path.at(u + size * momentum)
    return end, momentum + 0.5 * size * _force(end.u, end.gradient, beta)


def anneal(path: Path, start: State, betas: Tensor, steps: Tensor, leapfrog: int, rate: float = 0.0) -> Annealed:
    """Run chains from r to p and weigh them: log w = sum_t (b_t - b_{t-1}) log(p/r)(u_{t-1}).

    Args:
        path: r and p.
        start: draws of r.
        betas: temperatures b_0 = 0 to b_T = 1, [T + 1].
        steps: step sizes [T, b]; only the first is used where they are adapted.
        leapfrog: gradients a transition.
        rate: adapt the step sizes to the acceptance as the chains run. The kernels then depend on the chains, and the
            weights are biased upwards: for pilot chains only.

    Source: Neal 2001, eq. 11; with frozen kernels E[w] = p(x).
    """
    state, log_weights = start, start.log_p.new_zeros(start.log_p.shape, dtype=torch.float64)
    step, used, acceptances = steps[0], [], []
    for t, (before, beta) in enumerate(zip(betas.tolist(), betas[1:].tolist(), strict=False)):
        log_weights += (beta - before) * path.log_ratio(state)
        step = step if rate else steps[t]
        state, acceptance = transition(path, state, beta, step, leapfrog)
        used.append(step)
        acceptances.append(acceptance.mean(0))
        step = step * torch.exp(rate * (acceptances[-1] - TARGET))
    return Annealed(state, log_weights, torch.stack(acceptances).mean(0), torch.stack(used))


def anneal_back(path: Path, start: State, betas: Tensor, steps: Tensor, leapfrog: int) -> Tensor:
    """Run chains from p to r, and weigh them as `anneal` would have weighed them had they come the other way.

    Args:
        path: r and p.
        start: exact draws of the posterior.
        betas: as for `anneal`.
        steps: as for `anneal`; frozen.
        leapfrog: gradients a transition.

    Returns:
        Log-weights [C, b], float64; E[1/w] = 1/p(x).

    Source: Grosse, Ancha & Roy 2016, "Measuring the reliability of MCMC inference", section 3.
    """
    state, log_weights = start, start.log_p.new_zeros(start.log_p.shape, dtype=torch.float64)
    for t in reversed(range(len(steps))):
        before, beta = betas[t].item(), betas[t + 1].item()
        state, _ = transition(path, state, beta, steps[t], leapfrog)
        log_weights += (beta - before) * path.log_ratio(state)
    return log_weights


def temperatures(count: int, shape: Literal["linear", "sigmoid"], like: Tensor) -> Tensor:
    """b_0 = 0 to b_T = 1, [T + 1], float64: evenly, or slowly at both ends, which suits a start that is far away."""
    t = torch.linspace(0, 1, count + 1, dtype=torch.float64, device=like.device)
    if shape == "linear":
        return t
    curve = torch.sigmoid(SIGMOID * (2 * t - 1))
    return (curve - curve[0]) / (curve[-1] - curve[0])


def tuned_steps(path: Path, betas: Tensor, recipe: AnnealConfig) -> Tensor:
    """Step sizes [T, b] at which pilot chains reach the target acceptance, smoothed along the path.

    They change slowly along it, so on a long path the pilots take fewer and longer strides.
    """
    count = len(betas) - 1
    stations = torch.linspace(0, count, min(count, STRIDES) + 1, device=betas.device).round().long()
    steps = smooth(pilot_chains(path, betas[stations], recipe).steps)
    return interpolate(steps.log().mT[None], size=count, mode="linear")[0].mT.exp()


def pilot_chains(path: Path, betas: Tensor, recipe: AnnealConfig) -> Annealed:
    """Chains that adapt their step sizes; their weights are good for nothing but a fit."""
    first = torch.full((1, len(path.x)), FIRST_STEP, dtype=path.mean.dtype, device=path.mean.device)
    return anneal(path, path.draw(recipe.chains), betas, first, recipe.leapfrog, rate=0.2)


def smooth(steps: Tensor) -> Tensor:
    """A moving geometric mean over a tenth of the path, [T, b]."""
    half = max(1, len(steps) // 20)
    padded = pad(steps.log().mT, (half, half), mode="replicate")
    return avg_pool1d(padded, 2 * half + 1, stride=1).mT.exp()


def _force(u: Tensor, gradient: Tensor, beta: float) -> Tensor:
    """The gradient of log f_beta by u, from that of log p(x,z)."""
    return beta * gradient - (1 - beta) * u


def _log_density(path: Path, state: State, beta: float, momentum: Tensor) -> Tensor:
    log_f = (1 - beta) * path.log_r(state.u) + beta * state.log_p
    return log_f - 0.5 * momentum.square().sum(-1)
