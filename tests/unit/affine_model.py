"""Methods on data of a linear Gaussian model, p(z) = N(0, I), p(x|z) = N(W z + b, s^2 I), whose log p(x) is known."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.distributions import LowRankMultivariateNormal

from avb_service.algorithm import Algorithm, Batch, DataSpec, LatentVariableModel
from avb_service.seeding import seeded

PIXELS, NOISE = 6, 0.7
LAST = torch.tensor(1e6)  # a round after every warm-up


def affine(method: type[Algorithm], latent_dim: int = 2, **settings: object) -> LatentVariableModel:
    """A method, float64, whose decoder is the same affine one for all of a latent size."""
    section = {
        "name": method.Config.model_fields["name"].default,
        "latent_dim": latent_dim,
        "encoder": {"name": "mlp", "hidden": [16], "activation": "tanh"},
        "decoder": {"name": "affine"},
        "observation": {"name": "gaussian", "scale": NOISE},
        **settings,
    }
    spec = DataSpec((1, 1, PIXELS), "real", 0, torch.zeros(1, 1, PIXELS))
    with seeded("affine", latent_dim):
        model = method(method.Config.parse(section), spec).double()
    with seeded("weights", latent_dim), torch.no_grad():
        for parameter in model.decoder.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return model


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
