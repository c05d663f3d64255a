"""InfoGAN's parts: codes side by side, the bound on what is read off, and how categories are matched with classes."""

import math

import pytest
import torch
from torch.distributions import Independent, Normal, OneHotCategorical, Uniform

from avb_service.algorithm import Batch, DataSpec
from avb_service.algorithms.infogan import InfoGAN, InfoGANConfig
from avb_service.build import load_data
from avb_service.discrete import ProductDistribution
from avb_service.errors import DataError
from avb_service.figures.probe import continuous
from avb_service.maths import standard_normal
from avb_service.networks.augmentation import AugmentationConfig
from avb_service.settings import read_config
from benchmarks.infogan_codes import agreement


def test_vectors_side_by_side():
    uniform = Independent(Uniform(-torch.ones(2), torch.ones(2)), 1)
    p = ProductDistribution(OneHotCategorical(torch.tensor([0.25, 0.75])), uniform, standard_normal(3, torch.zeros(1)))
    z = p.sample((5, 4))
    assert z.shape == (5, 4, 7)
    assert p.event_shape == (7,) and p.batch_shape == ()
    assert z[..., :2].sum(-1).eq(1).all() and z[..., 2:4].abs().le(1).all()
    category = torch.log(z[..., :2] @ torch.tensor([0.25, 0.75]))
    torch.testing.assert_close(p.log_prob(z), category - 2 * math.log(2) + Normal(0, 1).log_prob(z[..., 4:]).sum(-1))
    assert [part.shape[-1] for part in p.split(z)] == [2, 2, 3]
    torch.testing.assert_close(p.mean, torch.tensor([0.25, 0.75, 0, 0, 0, 0, 0]))
    assert not continuous(p), "codes between two categories are no codes"
    assert continuous(ProductDistribution(uniform, standard_normal(3, torch.zeros(1))))


def build(**settings: object) -> InfoGAN:
    torch.manual_seed(0)
    config = InfoGANConfig.parse({"name": "infogan", "categories": 4, "continuous": 1, "noise_dim": 3, **settings})
    return InfoGAN(config, DataSpec((1, 4, 4), "levels", 255, torch.full((1, 4, 4), 0.5)))


@pytest.fixture
def model() -> InfoGAN:
    return build()


def test_the_losses_are_those_of_the_paper():
    """Eq. 6 with D, Q and R1 written out, in the second of four rounds over which both lambdas rise."""
    model = build(continuous=2, penalty=3.0, weight=0.7, continuous_weight=0.3, warmup=4)
    d, batch = model.discriminator, Batch(torch.rand(20, 1, 4, 4), None, torch.tensor(1.0))
    torch.manual_seed(1)
    z = model.prior().sample((20,))
    drawn = model.decode(z)
    d_real, d_fake = (torch.sigmoid(d(x)) for x in (batch.x, drawn))
    logits, mean = model.recogniser.network(d.features(drawn)).split([4, 2], -1)
    categorical = math.log(4) + (z[:, :4] * torch.log_softmax(logits, -1)).sum(-1).mean()
    continuous_ = 2 * math.log(2) + Normal(mean, 1 / math.sqrt(3)).log_prob(z[:, 4:6]).sum(-1).mean()
    information = 2 / 4 * (0.7 * categorical + 0.3 * continuous_)
    x = batch.x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(d(x).sum(), x)
    r1 = 3 / 2 * (slope**2).sum((1, 2, 3)).mean()
    torch.manual_seed(1)
    adversary = model.adversary_loss(batch).value
    torch.testing.assert_close(adversary, -(d_real.log() + (1 - d_fake).log()).mean() - information + r1)
    torch.manual_seed(1)
    torch.testing.assert_close(model.model_loss(batch).value, -d_fake.log().mean() - information)


def test_the_information_is_at_most_the_entropy_of_the_code(model):
    """It is log K where Q knows the category, 0 where it guesses evenly, and below 0 where it is sure and wrong."""
    z = model.prior().sample((50,))
    found = []
    for certainty in (100.0, 0.0, -100.0):
        logits = torch.cat([certainty * z[:, :4], torch.zeros(50, 1)], -1)
        model.recogniser.forward = lambda h, logits=logits: ProductDistribution(
            OneHotCategorical(logits=logits[:, :4]), Independent(Normal(logits[:, 4:5], 1.0), 1)
        )
        found.append(model.information(z, torch.zeros(50, 1), torch.zeros(50, 1))[1]["information_categorical"].item())
    assert found[0] == pytest.approx(math.log(4), abs=1e-4)
    assert found[1] == pytest.approx(0, abs=1e-5)
    assert found[2] < -50


def test_the_generator_is_paid_for_codes_that_can_be_read(model):
    """The loss is what D is deceived by, less lambda times the information."""
    batch = Batch(torch.rand(20, 1, 4, 4), None, torch.tensor(0.0))
    torch.manual_seed(1)
    loss = model.model_loss(batch)
    torch.manual_seed(1)
    z = model.prior().sample((20,))
    h = model.discriminator.features(model.decode(z))
    weighted, terms = model.information(z, h, h)
    torch.testing.assert_close(loss.value, loss.terms["loss"] - weighted)
    continuous_ = terms["information"] - terms["information_categorical"]
    torch.testing.assert_close(weighted, terms["information_categorical"] + 0.1 * continuous_)


@pytest.mark.parametrize("player", [0, 1], ids=["adversary", "model"])
def test_lambda_rises_from_nothing(model, player):
    """By so much a round: what information is worth in the last of them is four times that in the first."""
    model.config = model.config.model_copy(update={"warmup": 4})
    worth = []
    for round_ in (0, 3, 50):
        torch.manual_seed(0)
        loss = model.players()[player].objective(Batch(torch.full((20, 1, 4, 4), 0.5), None, torch.tensor(round_)))
        worth.append((loss.value - loss.terms["loss"]).item())
    assert worth[0] != 0
    assert worth[1:] == pytest.approx([4 * worth[0], 4 * worth[0]], rel=1e-4)


def test_no_part_of_the_code_outshouts_the_rest(model):
    """The generator sees numbers of one variance, 1: of categories, of the uniform codes, of the noise."""
    seen = []
    model.generator.register_forward_hook(lambda _, inputs, output: seen.append(inputs[0]))
    model.decode(model.prior().sample((20_000,)))
    torch.testing.assert_close(seen[0].var(0), torch.ones(8), atol=0.05, rtol=0)


def test_categories_are_read_off_augmented_draws_and_all_else_as_it_is(model):
    model.config = model.config.model_copy(update={"augmentation": AugmentationConfig(shift=1.0)})
    x, drawn = torch.rand(6, 1, 4, 4), torch.rand(6, 1, 4, 4)
    h_real, h, h_category = model.features(drawn, x)
    torch.testing.assert_close(h_real, model.discriminator.features(x))
    torch.testing.assert_close(h, model.discriminator.features(drawn))
    assert h_category.shape == h.shape and not torch.allclose(h_category, h)
    model.config = model.config.model_copy(update={"augmentation": None})
    torch.testing.assert_close(model.features(drawn), (h, h))


def test_what_is_no_image_cannot_be_augmented():
    """It is refused with the data, before anything starts; without it such data are fine."""
    points, augmented = "data={name: gaussians25}", "algorithm.augmentation={}"
    load_data(read_config("infogan_digits", [points]))
    load_data(read_config("infogan_digits", [augmented]))
    with pytest.raises(DataError, match=r"augmentation: .* images, given data of shape \[1, 1, 2\]; set it to null"):
        load_data(read_config("infogan_digits", [points, augmented]))


def test_augmentation():
    """No more than asked for, gradients flow back, and each datum is augmented by itself."""
    still = {"rotation": 0.0, "shear": 0.0, "zoom": 0.0, "shift": 0.0}
    x = torch.zeros(400, 1, 9, 9)
    x[:, :, 4, 4] = 1.0
    torch.testing.assert_close(AugmentationConfig(**still)(x), x)

    def centres(**amount: float) -> torch.Tensor:
        """Centres of gravity, (across, down) from the middle, in halves of a side, [400, 2]."""
        y = AugmentationConfig(**{**still, **amount})(x)[:, 0]
        places = (torch.arange(9.0) - 4) / 4.5
        return torch.stack([(y * places).sum((1, 2)), (y * places[:, None]).sum((1, 2))], -1) / y.sum((1, 2))[:, None]

    for amount in ("rotation", "shear", "zoom"):
        torch.testing.assert_close(centres(**{amount: 0.3}), torch.zeros(400, 2), atol=1e-5, rtol=0)
    moved = centres(shift=0.4)
    assert 0.35 < moved.abs().max() < 0.41 and moved.std(0).min() > 0.2
    x.requires_grad_()
    AugmentationConfig()(x).sum().backward()
    assert x.grad is not None and x.grad.abs().sum((1, 2, 3)).min() > 0


def test_categories_are_matched_with_classes_one_to_one():
    """Categories 0, 1, 2 hold classes AAB, AC, CC: one to one at most 2 + 0 + 2, by the commonest 2 + 1 + 2."""
    categories, labels = torch.tensor([0, 0, 0, 1, 1, 2, 2]), torch.tensor([0, 0, 1, 0, 2, 2, 2])
    found = agreement(categories, labels)
    assert found.matched == pytest.approx(4 / 7)
    assert found.majority == pytest.approx(5 / 7)
    assert agreement((labels + 1) % 3, labels).matched == 1.0
