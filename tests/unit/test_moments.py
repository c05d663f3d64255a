"""What a distribution says of its mean and variance is what its draws have."""

import pytest
import torch
import zuko
from torch import Tensor
from torch.distributions import Distribution, Independent

import avb_service.algorithms  # noqa: F401  with all distributions that there are
from avb_service.build import build, load_data
from avb_service.discrete import Bits, DiscreteCodes, LayeredBits, OneHots, OneOfK, ProductDistribution, bits
from avb_service.discretised import DiscretisedLogistic
from avb_service.distributions import (
    BernoulliConfig,
    DataSpec,
    GaussianConfig,
    LogisticConfig,
    ObservationConfig,
    Values,
)
from avb_service.maths import standard_normal
from avb_service.networks.autoregressive import Autoregressive, AutoregressiveConfig, Delta
from avb_service.networks.flow import AffineFlowConfig, Flow, FlowPrior
from avb_service.networks.mixture import Mixture, MixtureConfig
from avb_service.seeding import seeded

SHAPE = (2, 3, 4)
DRAWS, STANDARD_ERRORS = 40_000, 5.0


def random(*shape: int) -> Tensor:
    with seeded("parameters"):
        return torch.randn(shape, dtype=torch.float64)


def observed(config: ObservationConfig, values: Values, levels: int, scale: float = 2.0) -> Distribution:
    """What such a model makes of a decoder's outputs, some of them far from where they start."""
    model = config.build(DataSpec(SHAPE, values, levels, torch.full(SHAPE, 0.3))).double()
    return model(scale * random(5, model.planes, *SHAPE))


def edges(levels: int, log_scale: float) -> Distribution:
    """Locations below, on and above a grid, as an observation model does not start."""
    loc = torch.linspace(-1, 2, 13, dtype=torch.float64)
    return DiscretisedLogistic(loc, torch.full_like(loc, log_scale), levels)


def mixture() -> Distribution:
    fitted = Mixture(MixtureConfig(components=3), 4).double()
    fitted.means.copy_(random(3, 4)), fitted.weights.copy_(torch.tensor([0.2, 0.3, 0.5]))
    return fitted()


def flow() -> Distribution:
    with seeded("flow"):
        return FlowPrior(AffineFlowConfig(transforms=2, hidden=(4,)), 3)()


def belief() -> Distribution:
    return LayeredBits(random(3), (torch.nn.Linear(3, 2).double(),), (3, 2))


def autoregressive() -> Distribution:
    with seeded("autoregressive"):
        return Autoregressive(AutoregressiveConfig(hidden=(4,)), 2, 3)()


EXAMPLES = {
    "bernoulli": lambda: observed(BernoulliConfig(), "binary", 1),
    **{f"gaussian, {noise}": lambda noise=noise: observed(GaussianConfig(scale=0.3, noise=noise), "real", 0, 0.5)
       for noise in ("fixed", "learned", "predicted")},
    **{f"logistic, {levels} levels": lambda levels=levels: observed(LogisticConfig(), "levels", levels)
       for levels in (2, 16, 255)},
    **{f"edges, scale e^{log_scale}": lambda log_scale=log_scale: edges(16, log_scale) for log_scale in (-6, -2, 1)},
    "bits": lambda: bits(random(5, 3)),
    "one-hot vectors": lambda: OneHots(random(5, 2, 3)),
    "one of K": lambda: OneOfK(random(5, 4)),
    "certain": lambda: Delta(torch.eye(3)[[0, 2]].flatten(), 2),
    "side by side": lambda: ProductDistribution(OneOfK(random(4)), standard_normal(3, random(1))),
    "mixture": mixture,
    "flow": flow,
    "belief network": belief,
    "autoregressive": autoregressive,
}  # fmt: skip
UNKNOWN = {Flow, LayeredBits, type(autoregressive())}  # whose mean is no formula


@torch.no_grad()
@pytest.mark.parametrize("name", EXAMPLES)
def test_mean_and_variance_are_those_of_draws(name):
    p = EXAMPLES[name]()
    if type(p) in UNKNOWN:
        with pytest.raises(NotImplementedError):
            _ = p.mean
        return
    with seeded("draws", name):
        draws = p.sample((DRAWS,))
    mean, variance = draws.mean(0), draws.var(0)
    fourth = (draws - mean).pow(4).mean(0)
    allowed = STANDARD_ERRORS / DRAWS**0.5
    assert ((p.mean - mean).abs() <= allowed * variance.sqrt() + 1e-4).all()
    assert ((p.variance - variance).abs() <= allowed * (fourth - variance.square()).clamp(min=0).sqrt() + 1e-4).all()


@torch.no_grad()
@pytest.mark.parametrize("name", ["vae", "avb"])
def test_decoded_codes_are_the_mean_of_what_the_model_draws_for_them(small, name):
    observation = {"data.binarisation": "none", "algorithm.observation": {"name": "discretised_logistic"}}
    config = small(name, observation)
    model = build(config, load_data(config).spec)
    with seeded("codes"):
        z = 3 * model.prior().sample((4,))
        draws = model.likelihood(z).sample((DRAWS // 8,))
    assert ((model.decode(z) - draws.mean(0)).abs() <= 5.5 * draws.std(0) / len(draws) ** 0.5 + 1e-3).all()


def test_there_is_an_example_of_every_distribution_of_ours():
    def below(base: type) -> set[type]:
        return {each for child in base.__subclasses__() for each in (child, *below(child))}

    ours = {each for each in below(Distribution) if each.__module__.startswith("avb_service.")}
    made = [make() for make in EXAMPLES.values()]
    shown = {type(p.base_dist if isinstance(p, Independent) else p) for p in made}
    assert {Bits, DiscretisedLogistic, OneHots} < ours
    assert ours - shown == {DiscreteCodes}, "an abstract one"
    assert issubclass(Flow, zuko.distributions.NormalizingFlow)


def test_the_mean_of_a_location_at_the_end_of_the_grid():
    p = DiscretisedLogistic(torch.zeros(1), torch.full((1,), -2.0), 255)
    assert p.mean.item() == pytest.approx(0.0938, abs=5e-4)
    assert DiscretisedLogistic(torch.tensor([-40.0, 40.0]), torch.full((2,), -7.0), 255).mean.tolist() == [0, 1]
    narrow = DiscretisedLogistic(torch.tensor([1 / 3]), torch.tensor([-7.0]), 255)
    grid = torch.arange(256) / 255
    mass = narrow.log_prob(grid).exp()
    expected = (mass * (grid - (mass * grid).sum()).square()).sum()
    assert narrow.variance.item() == pytest.approx(expected.item(), rel=1e-3)
