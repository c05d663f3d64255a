"""Bayesian models: their densities against closed forms, and what AVB finds of their posteriors."""

import math

import pytest
import torch
from torch.distributions import HalfCauchy, Normal

from avb_service.algorithms.avb_joint import AVBJointConfig
from avb_service.bayes import EightSchools
from avb_service.data.datasets import DataConfig, load
from avb_service.errors import ConfigError, UserError
from avb_service.fitting import Fit
from avb_service.likelihood import Evaluator, LikelihoodConfig
from avb_service.settings import read_config


def log_evidence() -> float:
    """Log p(y) of the eight schools: the effects by hand, mu and the quantiles of tau on a grid."""
    y = torch.tensor(EightSchools.effects, dtype=torch.float64)
    s = torch.tensor(EightSchools.errors, dtype=torch.float64)
    mu = torch.linspace(-60, 60, 2401, dtype=torch.float64)
    level = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000  # of tau: even in prior probability
    tau = 5 * torch.tan(0.5 * math.pi * level)
    scale = (s.square() + tau[:, None].square()).sqrt()
    log_p = Normal(mu[:, None, None], scale).log_prob(y).sum(-1) + Normal(0.0, 5.0).log_prob(mu)[:, None]
    return (log_p.flatten().logsumexp(0) + math.log(0.05) - math.log(4000)).item()


def test_the_unknowns_of_the_eight_schools_have_the_priors_that_the_book_gives_them():
    torch.manual_seed(0)
    model = EightSchools()
    natural = model.natural(model.prior().sample((100_000,)))
    levels = torch.tensor([0.1, 0.5, 0.9, 0.99])
    tau = HalfCauchy(5.0).icdf(levels)
    se = (levels * (1 - levels) / 100_000).sqrt() / HalfCauchy(5.0).log_prob(tau).exp()  # of a quantile
    assert ((natural[:, 1].quantile(levels) - tau).abs() < 4 * se).all()
    assert natural[:, 0].std().item() == pytest.approx(5.0, rel=0.02)
    z = (natural[:, 2:] - natural[:, :1]) / natural[:, 1:2]
    assert z.std().item() == pytest.approx(1.0, rel=0.01)


def test_annealing_finds_the_evidence_of_the_eight_schools(tmp_path):
    experiment = Fit(read_config("avb_joint_eight_schools"), tmp_path)
    x, _ = experiment.model.data("test")
    config = LikelihoodConfig.parse({"pilot": {"temperatures": 50}, "ais": {"temperatures": 50, "chains": 64}})
    estimate = Evaluator(experiment.engine.algorithm, config).score("ais", x)
    assert estimate.value == pytest.approx(log_evidence(), abs=0.05)  # 64 chains with an effective size near 50


def test_a_mean_that_leaves_the_numbers_is_not_taken_for_an_affine_one(tmp_path):
    model = Fit(read_config("avb_joint_eight_schools"), tmp_path).engine.algorithm
    assert not Evaluator(model, LikelihoodConfig()).applies("ppca")


COVARIANCE = [[1.0, 0.8], [0.8, 1.5]]
CORRELATED = f'''
import torch
from torch.distributions import MultivariateNormal
from avb_service.bayes import BayesianModel

class Correlated(BayesianModel):
    """A density that is nothing but a function: a correlated Gaussian, not normalised."""

    shape, dim, unknowns = (1, 1, 8), 2, ("a", "b")

    def log_joint(self, x, z):
        return 3.0 + MultivariateNormal(torch.tensor([1.0, -1.0]), torch.tensor({COVARIANCE})).log_prob(z)
'''


@pytest.fixture
def package(tmp_path, monkeypatch):
    """One that somebody has installed beside ours, with a model, a name for nothing, and one for something else."""
    (tmp_path / "somebodys_models.py").write_text(CORRELATED)
    (tmp_path / "somebodys-1.0.dist-info").mkdir()
    (tmp_path / "somebodys-1.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: somebodys\nVersion: 1.0\n"
    )
    (tmp_path / "somebodys-1.0.dist-info" / "entry_points.txt").write_text(
        "[avb_service.bayesian_models]\n"
        "correlated = somebodys_models:Correlated\nlost = somebodys_models:Lost\nother = torch:Tensor\n"
    )
    monkeypatch.syspath_prepend(tmp_path)


def test_a_model_of_an_installed_package_may_be_nothing_but_a_function(package, tmp_path):
    small = {"encoder.bases": 4, "encoder.noise_dim": 4, "encoder.hidden": [16], "discriminator.hidden": [32, 32]}
    overrides = [f"algorithm.{key}={value}" for key, value in small.items()]
    overrides += [
        "algorithm.joint=correlated",
        "training.rounds=600",
        "training.report_every=600",
        "training.batch_size=128",
        "algorithm.model.lr=5e-3",
        "algorithm.adversary.lr=5e-3",
    ]
    experiment = Fit(read_config("avb_joint_eight_schools", overrides), tmp_path)
    experiment.run()
    x, _ = experiment.model.data("test")
    z = experiment.engine.algorithm.encode(x, 20_000)[:, 0]
    torch.testing.assert_close(z.mean(0), torch.tensor([1.0, -1.0]), atol=0.15, rtol=0)
    torch.testing.assert_close(z.mT.cov(), torch.tensor(COVARIANCE), atol=0.3, rtol=0)
    with pytest.raises(UserError, match="Correlated is given by its log joint alone"):
        experiment.engine.algorithm.sample(1)


def test_what_a_package_names_has_to_be_a_model(package):
    for name, wrong in {"lost": "cannot be imported", "other": "expected a subclass"}.items():
        with pytest.raises(UserError, match=f"joint: {name} is .*{wrong}"):
            read_config("avb_joint_eight_schools", [f"algorithm.joint={name}"])


def test_observations_of_another_kind_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="eight_schools models real-valued observations, given levels data"):
        read_config("avb_joint_eight_schools", ["data.name=digits"])
    with pytest.raises(ConfigError, match="joint.*one of eight_schools"):
        read_config("avb_joint_eight_schools", ["algorithm.joint=nine_schools"])
    spec = load(DataConfig.parse({"name": "eight_schools"})).spec._replace(shape=(1, 1, 5))
    with pytest.raises(UserError, match=r"observations of shape \[1, 1, 8\], given \[1, 1, 5\]"):
        AVBJointConfig().generative(spec)
