"""Methods on data of a linear Gaussian model, p(z) = N(0, I), p(x|z) = N(W z + b, s^2 I), whose log p(x) is known."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.distributions import LowRankMultivariateNormal

from avb_service.algorithm import Algorithm, Batch, DataSpec, LatentVariableModel
from avb_service.networks.encoders import GaussianEncoder
from avb_service.seeding import seeded

PIXELS, NOISE = 6, 0.7
LAST = torch.tensor(1e6)  # a round after every warm-up


def affine(method: type[Algorithm], latent_dim: int = 2, wider: float = 1.0, **settings: object) -> LatentVariableModel:
    """A method, float64, whose decoder is the same for all of a latent size, and learns nothing.

    The Gaussian that its encoder gives begins as the best factorised one, or so many times as wide.
    """
    section = {
        "name": method.Config.model_fields["name"].default,
        "latent_dim": latent_dim,
        "encoder": {"name": "affine"},  # as the mean of p(z|x) is
        "decoder": {"name": "affine"},
        "observation": {"name": "gaussian", "scale": NOISE},
        **settings,
    }
    spec = DataSpec((1, 1, PIXELS), "real", 0, torch.zeros(1, 1, PIXELS))
    with seeded("affine", latent_dim), torch.no_grad():
        model = method(method.Config.parse(section), spec).double()
        w, b = model.decoder.parameters()
        w.copy_(torch.randn(PIXELS, 1) + 0.6 * torch.randn(PIXELS, latent_dim))  # so that codes depend on each other
        b.copy_(torch.randn(PIXELS))
        _begin(next(each for each in model.modules() if isinstance(each, GaussianEncoder)), model, wider)
    return model


def _begin(encoder: GaussianEncoder, model: LatentVariableModel, wider: float) -> None:
    w, b = model.decoder.parameters()
    precision = _precision(model)
    mean = torch.linalg.solve(precision, w.mT / NOISE**2)
    log_scale = wider * precision.diagonal().rsqrt()
    encoder.head.weight.copy_(torch.cat([mean, torch.zeros_like(mean)]))
    encoder.head.bias.copy_(torch.cat([-mean @ b, log_scale.log()]))


def _precision(model: LatentVariableModel) -> Tensor:
    """Of p(z|x)."""
    w = next(model.decoder.parameters()).detach()
    return torch.eye(w.shape[1], dtype=w.dtype) + w.mT @ w / NOISE**2


def factorised_gap(model: LatentVariableModel) -> float:
    """KL of the best factorised Gaussian from p(z|x), for any x: 1/2 (sum_i log P_ii - log|P|), P the precision.

    Source: Bishop 2006, "Pattern recognition and machine learning", section 10.1.2.
    """
    precision = _precision(model)
    return (precision.diagonal().log().sum() - precision.logdet()).item() / 2


def data(model: LatentVariableModel, n: int) -> Tensor:
    """Draws of the model itself, [n, 1, 1, PIXELS]."""
    with seeded("data"), torch.no_grad():
        return model.sample(n)


def evidence(model: LatentVariableModel, x: Tensor) -> Tensor:
    """Log p(x) = log N(x; b, W W' + s^2 I), [n]."""
    w, b = (parameter.detach() for parameter in model.decoder.parameters())
    return LowRankMultivariateNormal(b, w, torch.full_like(b, NOISE**2)).log_prob(x.flatten(1))


def losses(model: LatentVariableModel, x: Tensor, repeats: int) -> Iterator[dict[str, float]]:
    """The terms of the loss that all networks share, after the warm-up."""
    with seeded("losses"), torch.no_grad():
        for _ in range(repeats):
            terms = model.players()[0].objective(Batch(x, None, LAST)).terms
            yield {name: term.item() for name, term in terms.items()}


def learn_posterior(model: LatentVariableModel, rounds: int = 400, lr: float = 1e-2) -> None:
    """Train all but the decoder on draws of the model, which stays as it is; the rate falls to 0."""
    inference = [p for name, p in model.named_parameters() if not name.startswith("decoder.")]
    optimizer = torch.optim.Adam(inference, lr)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, rounds)
    with seeded("learn"):
        for _ in range(rounds):
            optimizer.zero_grad()
            model.players()[0].objective(Batch(model.sample(100), None, LAST)).value.backward()
            optimizer.step()
            schedule.step()
