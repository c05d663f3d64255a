"""Models that are built as pythae builds its own; `python -m benchmarks.certify` scores pythae's."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Independent, MultivariateNormal, Normal

import avb_service
from avb_service.display import Display
from avb_service.errors import UserError
from avb_service.likelihood import given_model
from avb_service.likelihood.pythae import from_pythae
from avb_service.seeding import seeded

DIM, SHAPE = 2, (1, 2, 3)


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 2 * DIM)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        mean, log_covariance = self.layer(x.flatten(1)).chunk(2, -1)
        return {"embedding": mean, "log_covariance": log_covariance}


class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(DIM, 6)

    def forward(self, z: Tensor) -> dict[str, Tensor]:
        return {"reconstruction": self.layer(z).sigmoid().reshape((z.shape[0], *SHAPE))}


class Affine(nn.Module):
    """A flow whose density is known: z -> a z + b, the other way round where pythae's is."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale))

    def inverse(self, z: Tensor) -> dict[str, Tensor]:
        return {"out": self.scale * z + 1, "log_abs_det_jac": (DIM * self.scale.log()).expand(len(z))}

    def forward(self, y: Tensor) -> dict[str, Tensor]:
        return {"out": (y - 1) / self.scale, "log_abs_det_jac": (-DIM * self.scale.log()).expand(len(y))}


class Layer(Affine):
    """A planar flow's interface: forward draws."""

    def forward(self, z: Tensor) -> dict[str, Tensor]:
        return self.inverse(z)


class Model(nn.Module):
    def __init__(self, name: str, loss: str = "bce") -> None:
        super().__init__()
        self.model_name, self.latent_dim = name, DIM
        self.model_config = SimpleNamespace(reconstruction_loss=loss)
        with seeded("pythae"):
            self.encoder, self.decoder = Encoder(), Decoder()
        if name == "VAE_IAF":
            self.iaf_flow = Affine(1.5)
        if name == "VAE_LinNF":
            self.net = nn.ModuleList([Layer(1.5), Layer(0.5)])


@pytest.fixture(scope="module")
def x() -> Tensor:
    with seeded("pythae"):
        return torch.bernoulli(torch.full((5, *SHAPE), 0.5))


def test_cross_entropy_is_a_bernoulli_and_square_error_a_gaussian_of_scale_one(x):
    model = Model("VAE")
    z = torch.randn(4, 5, DIM)
    mean = model.decoder(z.flatten(0, 1))["reconstruction"].unflatten(0, (4, 5))
    entropy = nn.functional.binary_cross_entropy(mean, x.expand_as(mean), reduction="none").flatten(2).sum(-1)
    torch.testing.assert_close(from_pythae(model).likelihood(z).log_prob(x), -entropy)
    of_squares = from_pythae(Model("BetaVAE", "mse")).likelihood(z).log_prob(x)
    torch.testing.assert_close(of_squares, Independent(Normal(mean, 1.0), 3).log_prob(x))


def test_a_flow_s_posterior_is_that_of_its_draws(x):
    model = Model("VAE_IAF")
    q = from_pythae(model).posterior(x)
    output = model.encoder(x)
    scale = 1.5 * (0.5 * output["log_covariance"]).exp()
    by_hand = MultivariateNormal(1.5 * output["embedding"] + 1, torch.diag_embed(scale.square()))
    z = q.sample((3,))
    assert z.shape == (3, 5, DIM)
    torch.testing.assert_close(q.log_prob(z), by_hand.log_prob(z))


def test_a_posterior_whose_flow_has_no_inverse_is_known_by_draws(x):
    q = from_pythae(Model("VAE_LinNF")).posterior(x)
    with seeded("draws"):
        z = q.sample((2000,))
    output = Model("VAE_LinNF").encoder(x)
    torch.testing.assert_close(z.mean(0), 0.75 * output["embedding"] + 1.5, rtol=0, atol=0.15)
    with pytest.raises(NotImplementedError):
        q.log_prob(z)


@pytest.mark.parametrize("name", ["VAE", "IWAE", "VAE_IAF", "VAE_LinNF"])
def test_the_model_is_scored_and_left_as_it_was(name, x):
    model = Model(name).train()
    found = avb_service.certify(
        *from_pythae(model), x=x, budget="quick", changes={"importance_draws": 8}, display=Display(quiet=True)
    )
    assert "iwae" in {each.key.estimator for each in found.estimates}
    assert all(module.training for module in model.modules())
    assert given_model(*from_pythae(model), x)[0].example.shape == (1, *SHAPE)


def test_a_model_with_another_prior_or_no_likelihood_is_refused():
    with pytest.raises(UserError, match="given a VAMP, expected a model of pythae.*VAE_IAF"):
        from_pythae(Model("VAMP"))
    with pytest.raises(UserError, match="given a Linear"):
        from_pythae(nn.Linear(1, 1))
    with pytest.raises(UserError, match="its reconstruction_loss is 'l1', expected bce"):
        from_pythae(Model("VAE", "l1"))
