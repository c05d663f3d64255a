"""Looking at a model without leaving a trace, and what its prior allows.

Floor 5.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, MixtureSameFamily, MultivariateNormal

from avb_service.maths import gaussian_marginals
from avb_service.seeding import seeded

PRIOR_DRAWS = 4096


@contextmanager
def still(model: nn.Module, plot: str, seed: int) -> Iterator[None]:
    """Run a block with the model in evaluation mode, without gradients, under the plot's own noise.

    Every module's own mode and the state of the global generators are restored, also after an exception.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad(), seeded("figures", plot, seed):
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def beside(model: nn.Module, x: Tensor) -> Tensor:
    """The data, on the model's device."""
    return x.to(next(chain(model.parameters(), model.buffers()), x).device)


def components(prior: Distribution) -> tuple[Tensor, MultivariateNormal] | None:
    """The weights [K] and the Gaussians, batch shape [K], of a mixture of them; none of any other prior."""
    if not isinstance(prior, MixtureSameFamily) or not isinstance(prior.component_distribution, MultivariateNormal):
        return None
    return prior.mixture_distribution.probs, prior.component_distribution


def continuous(prior: Distribution) -> bool:
    """Whether codes between two codes are codes."""
    try:
        support = prior.support
    except NotImplementedError:
        return True
    return support is None or not support.is_discrete


def quantiles(prior: Distribution, levels: Tensor) -> Tensor:
    """Quantiles of the prior's marginals at levels [S], [S, D]; from draws where it is not a factorised Gaussian."""
    marginals = gaussian_marginals(prior)
    if marginals is not None:
        return marginals.icdf(levels.to(marginals.loc)[:, None])
    draws = prior.sample((PRIOR_DRAWS,))
    return torch.quantile(draws, levels.to(draws), dim=0)
