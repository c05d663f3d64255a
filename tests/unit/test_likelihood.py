"""What is common to all estimators: pieces, noise, estimates, and which of them apply."""

import math

import numpy as np
import pytest
import torch
from known_adversary import BASIS, BINARY, INPUT, SMALL
from linear_gaussian import PCA, data, implicit, mean_field
from torch import Tensor
from torch.distributions import Distribution, MultivariateNormal

from avb_service.algorithm import Algorithm, AlgorithmConfig, Player
from avb_service.algorithms.avb import AVB, AVBConfig
from avb_service.algorithms.avb_ac import AVBAC, AVBACConfig
from avb_service.algorithms.vae import VAE, VAEConfig
from avb_service.errors import DataError, UserError
from avb_service.likelihood import Evaluator, LikelihoodConfig, latent_variable_model
from avb_service.likelihood.proposals import PilotConfig, own, refined
from avb_service.likelihood.scoring import BLOCK, Columns, Scorer, Task, estimate
from avb_service.networks.trunks import MLPConfig
from avb_service.records import NATS, Estimate, Key
from avb_service.seeding import seeded

QUICK = {
    "importance_draws": 64,
    "proposal_draws": 64,
    "elbo_draws": 8,
    "search": {"temperatures": 20, "chains": 8, "rest": 5},
}


def settings(**options: object) -> LikelihoodConfig:
    return LikelihoodConfig.parse({**QUICK, **options})


# Pieces, and their noise.


class Sums:
    """An estimator that notes which pieces it is given."""

    def __init__(self, rows: int, **options: int) -> None:
        self.rows, self.options, self.seen = rows, options, []

    def __call__(self, model: Algorithm) -> Scorer:
        return Scorer(Key("sums"), "exact", self.rows, self.score, **self.options)

    def score(self, part: Tensor) -> Columns:
        self.seen.append(len(part))
        return {NATS: part.flatten(1).sum(1)}


def pieces(make: Sums, n: int, mib: int) -> list[int]:
    """The pieces that n data of 4 pixels are cut in, 4 bytes each, four times over."""
    x = torch.arange(4.0 * n).reshape(n, 1, 1, 4)
    result = estimate(Task(vae(2), make, x, 0, mib))
    assert np.array_equal(result.per_datum, x.flatten(1).sum(1).double())
    return make.seen


def test_data_are_cut_into_as_many_pieces_as_fit():
    rows = 2**20 // (4 * 4 * 4) // 16  # 16 data in a MiB
    assert pieces(Sums(rows), 100, 1) == [16] * 6 + [4]
    assert pieces(Sums(rows), 100, 2) == [32] * 3 + [4]
    assert pieces(Sums(rows * 10**6), 100, 1) == [1] * 100
    assert pieces(Sums(1), 100, 1024) == [BLOCK] * (100 // BLOCK)


def test_an_estimator_that_learns_from_its_data_gets_them_together():
    assert pieces(Sums(1, block=1000), 300, 64) == [300]
    assert pieces(Sums(2**20 // (4 * 4 * 4) // 16, block=1000), 40, 1) == [16, 16, 8]


class Counting(PCA):
    """Notes how many codes its decoder is given at a time."""

    def __init__(self, dim: int, pixels: int) -> None:
        super().__init__(dim, implicit, pixels=pixels, dtype=torch.float32)
        self.most = 0

    def likelihood(self, z: Tensor) -> Distribution:
        self.most = max(self.most, z.shape[:-1].numel())
        return super().likelihood(z)


FEW = {"chains": 2, "temperatures": 2, "leapfrog": 1}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("ais", {"ais": FEW, "pilot": {**FEW, "chains": 32}}),
        ("ais", {"ais": {**FEW, "chains": 32}, "pilot": {**FEW, "chains": 4}}),
        ("ais_prior", {"ais_prior": {**FEW, "chains": 32}}),
        ("bdmc", {"ais": FEW, "pilot": {**FEW, "chains": 32}}),
        ("iwae_mixture", {"importance_draws": 2, "search": {**FEW, "chains": 32}}),
        ("iwae", {"importance_draws": 64, "proposal_draws": 16}),
        ("elbo_ceiling", {"proposal_draws": 64}),
    ],
)
def test_no_batch_is_larger_than_the_memory_that_it_may_take(name, options):
    pixels = 512
    fits = 2**20 // (pixels * 4 * 4)  # evaluations of the decoder, in a MiB
    model = Counting(2, pixels)
    Evaluator(model, LikelihoodConfig.parse({"memory_mib": 1, **options})).score(name, data(model, 20))
    assert 32 <= model.most <= fits


def test_what_a_proposal_keeps_of_its_chains_counts_too():
    few, many = (refined(PCA(5), PilotConfig(chains=4, rest=rest)).rows for rest in (1, 100))
    assert many > few + 4 * 90 * 5 / 6, "codes of 5 numbers, where data are of 6"
    assert own(PCA(2, implicit), 300, 1.2).rows == 300 and own(PCA(2), 300, 1.2).rows == 1


def noise(model: Algorithm, name: str, x: Tensor, seed: int = 0) -> Tensor:
    rows = 2**20 // (4 * 4 * 4) // 2  # two data in a MiB
    make = lambda _: Scorer(Key(name), "estimate", rows, lambda part: {NATS: torch.rand(len(part))})  # noqa: E731
    return torch.from_numpy(estimate(Task(model, make, x, seed, 1)).per_datum)


def test_noise_of_a_piece_depends_on_the_seed_and_on_its_place():
    model, x = vae(2), torch.zeros(6, 1, 1, 4)
    first = noise(model, "a", x)
    assert torch.equal(noise(model, "a", x), first)
    assert len(set(first.tolist())) == 6
    assert not torch.equal(noise(model, "b", x), first)
    assert not torch.equal(noise(model, "a", x, seed=1), first)
    assert torch.equal(noise(model, "a", x[:2]), first[:2])


# Estimates.


def test_an_estimate_is_a_mean_with_its_standard_error():
    values = torch.tensor([1.0, 2.0, 3.0, 6.0])
    result = Estimate.of(Key("iwae", 8), "lower_bound", {NATS: values, "ess": torch.tensor([2.0, 3.0, 2.0, 3.0])})
    assert result.value == 3.0
    assert result.stderr == pytest.approx(math.sqrt(14 / 3) / 2)
    assert result.per_datum.dtype == np.float64
    assert result.metrics("test") == {
        "test/log_likelihood.iwae_8.lower_bound": 3.0,
        "test/log_likelihood.iwae_8.stderr": result.stderr,
        "test/log_likelihood.iwae_8.ess": 2.5,
    }
    ceiling = Estimate.of(Key("elbo_ceiling"), "upper_bound", {NATS: values}, "own_elbo")
    assert ceiling.metrics("test") == {"test/elbo_ceiling": 3.0, "test/elbo_ceiling.stderr": ceiling.stderr}
    assert (result.meaning, ceiling.meaning) == ("lower bound", "upper bound on q's own ELBO")
    assert math.isnan(Estimate.of(Key("iwae", 8), "lower_bound", {NATS: values[:1]}).stderr)


def test_a_kind_may_follow_from_the_numbers_of_all_data():
    kind = lambda columns: "exact" if columns[NATS].mean() < 2.9 else "estimate"  # noqa: E731
    make = lambda _: Scorer(Key("k"), kind, 2**20, lambda part: {NATS: part.flatten(1).sum(1)})  # noqa: E731
    x = torch.tensor([1.0, 2.0, 3.0, 5.0])[:, None, None, None].expand(-1, 1, 1, 1)
    assert estimate(Task(vae(2), make, x[:3], 0, 1)).kind == "exact"
    assert estimate(Task(vae(2), make, x[1:], 0, 1)).kind == "estimate"


def test_evaluation_leaves_the_global_generator_alone_and_is_repeatable():
    model = PCA(2, mean_field)
    x = data(model, 10)
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    first = Evaluator(model, settings()).evaluate(x, "quick")
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(4)
    for one, other in zip(first, Evaluator(model, settings()).evaluate(x, "quick"), strict=True):
        assert np.array_equal(one.per_datum, other.per_datum)


def test_evaluation_is_in_full_precision_and_leaves_that_of_training():
    seen = []

    def precision() -> tuple[str, bool]:
        return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32

    def note(part: Tensor) -> Columns:
        seen.append(precision())
        return {NATS: torch.zeros(len(part))}

    before = precision()
    try:
        torch.set_float32_matmul_precision("medium")
        torch.backends.cudnn.allow_tf32 = True
        estimate(Task(vae(2), lambda _: Scorer(Key("seen"), "exact", 1, note), torch.zeros(2, 1, 1, 4), 0, 1))
        assert seen == [("highest", False)]
        assert precision() == ("medium", True)
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def test_quadrature_is_done_for_as_many_data_as_asked_for():
    model = PCA(1)
    x = data(model, 20)
    estimates = Evaluator(model, settings(quadrature_data=7)).evaluate(x, "quick")
    grid = next(each for each in estimates if each.name == "quadrature")
    np.testing.assert_allclose(grid.per_datum, model.exact(x)[:7], rtol=0, atol=1e-5)
    assert all(len(each.per_datum) == 20 for each in estimates if each is not grid)


# Which apply.


class Sampler(Algorithm):
    """A method without p(x|z)."""

    def players(self) -> tuple[Player, ...]:
        return ()

    def sample(self, n: int) -> Tensor:
        return torch.zeros(n, 1, 1, 4)


def vae(latent_dim: int) -> VAE:
    return VAE(VAEConfig(latent_dim=latent_dim, encoder=MLPConfig(hidden=(8,)), decoder=MLPConfig(hidden=(8,))), BINARY)


def test_estimators_that_do_not_apply_say_so():
    x = torch.zeros(3, 1, 1, 4)
    with pytest.raises(UserError, match=r"sampler defines no p\(x\|z\)"):
        latent_variable_model(Sampler(AlgorithmConfig(name="sampler"), BINARY))
    with pytest.raises(UserError, match=r"sampler defines no p\(x\|z\)"):
        Evaluator(Sampler(AlgorithmConfig(name="sampler"), BINARY), settings()).evaluate(x, "quick")
    with pytest.raises(UserError, match="elbo needs a posterior with a density.*use elbo_adversarial.*iwae"):
        Evaluator(AVB(AVBConfig(**SMALL, encoder=INPUT), BINARY), settings()).score("elbo", x)
    with pytest.raises(UserError, match="elbo_adversarial needs an adversary.*which VAE has not: use elbo"):
        Evaluator(vae(2), settings()).score("elbo_adversarial", x)
    with pytest.raises(UserError, match="quadrature needs at most 2 latent dimensions, this model has 8"):
        Evaluator(vae(8), settings()).score("quadrature", x)
    with pytest.raises(UserError, match="parzen asks for training data besides.*use `parzen"):
        Evaluator(vae(8), settings()).score("parzen", x)
    with pytest.raises(UserError, match="no estimator 'aiz'; there are quadrature.*and parzen"):
        Evaluator(vae(8), settings()).score("aiz", x)


class Bent(PCA):
    """With a decoder that is not linear, data that leave little doubt of z, and a posterior that is about right."""

    def likelihood(self, z: Tensor) -> Distribution:
        return super().likelihood(z + 0.3 * torch.sin(3 * z))

    def posterior(self, x: Tensor) -> Distribution:
        straight = self.exact_posterior(x)
        low, high = straight.loc - 0.5, straight.loc + 0.5
        for _ in range(40):  # z + 0.3 sin(3 z) grows with z
            middle = (low + high) / 2
            above = middle + 0.3 * torch.sin(3 * middle) > straight.loc
            low, high = torch.where(above, low, middle), torch.where(above, middle, high)
        slope = (1 + 0.9 * torch.cos(3 * low)).diag_embed()
        return MultivariateNormal(low, precision_matrix=slope @ straight.precision_matrix @ slope)


def test_weak_pilots_make_no_estimate_that_is_believed():
    """Chains that are too few and too short leave ais hundreds of nats below; iwae and quadrature agree."""
    model = Bent(2, noise=0.02, pixels=30)
    x = data(model, 40)
    weak = settings(
        pilot={"temperatures": 2, "chains": 4, "rest": 1, "leapfrog": 1},
        ais={"temperatures": 2, "chains": 2},
        ais_prior={"temperatures": 2, "chains": 2},
        importance_draws=256,
        certificate={"real": 20, "simulated": 20},
    )
    whole = Evaluator(model, weak).assess(x, "certified")
    value = {each.name: each.value for each in whole.estimates}
    assert whole.held_out.name == "quadrature" and whole.held_out.kind == "exact" and whole.objection is None
    assert value["iwae_256"] == pytest.approx(value["quadrature"], abs=0.1)
    assert value["ais"] < value["quadrature"] - 10
    assert "shortfall" in {check.name for check in whole.certificate.checks if not check.passed}
    some = Evaluator(model, weak.model_copy(update={"quadrature_data": 10})).assess(x, "certified")
    assert some.held_out.name == "ais" and some.shortfall.difference > 10
    assert "ais is too low" in some.objection and not some.certificate.passed


def test_nothing_is_scored_for_a_certificate_of_no_data():
    model, told = PCA(2), []
    evaluator = Evaluator(model, settings(), progress=lambda name: told.append(name) or (lambda done, total: None))
    for certify in (evaluator.certify, lambda x: evaluator.assess(x, "certified")):
        with pytest.raises(DataError, match="no data to score"):
            certify(data(model, 2)[:0])
    assert set(told) == {"ais"}, "the first of them, which refuses"


ALWAYS = {"iwae_64", "iwae_mixture_128", "elbo_ceiling"}


@pytest.mark.parametrize(
    ("model", "names"),
    [
        (lambda: vae(2), {"elbo", "quadrature"}), (lambda: vae(3), {"elbo"}),
        (lambda: AVB(AVBConfig(**SMALL, encoder=INPUT), BINARY), {"elbo_adversarial"}),
        (lambda: AVBAC(AVBACConfig(**SMALL, encoder=BASIS), BINARY), {"elbo_adversarial"}),
        (lambda: PCA(2, mean_field), {"elbo", "quadrature", "ppca"}),
    ],
    ids=["vae-2", "vae-3", "avb", "avb_ac", "ppca"],
)  # fmt: skip
def test_every_estimator_that_applies_is_computed_and_orders_as_its_kind_says(model, names):
    with seeded("model"):
        built = model()
    x = torch.eye(4)[:, None, None] if built.spec is BINARY else data(built, 40)
    estimates = Evaluator(built, settings(elbo_draws=256, proposal_draws=256)).evaluate(x, "quick")
    by_name = {each.name: each.value for each in estimates}
    assert by_name.keys() == names | ALWAYS
    assert all(each.per_datum.shape == (len(x),) for each in estimates)
    if "elbo" in by_name:
        assert by_name["elbo"] < by_name["iwae_64"]
        assert by_name["elbo_ceiling"] == pytest.approx(by_name["elbo"], abs=0.1)
    if "quadrature" in by_name:
        assert by_name["iwae_64"] == pytest.approx(by_name["quadrature"], abs=0.1)
        assert by_name["iwae_mixture_128"] == pytest.approx(by_name["quadrature"], abs=0.1)
    if "ppca" in by_name:
        assert by_name["ppca"] == pytest.approx(by_name["quadrature"], abs=1e-6)
