"""Plots show what they say, are the same every time, and leave no trace in the model or the generators."""

from io import BytesIO
from itertools import combinations

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox
from PIL import Image
from torch import Tensor, nn
from torch.distributions import (
    Bernoulli,
    Categorical,
    Distribution,
    Independent,
    MixtureSameFamily,
    Normal,
    OneHotCategorical,
)

from avb_service.algorithm import Algorithm, CodedModel, LatentVariableModel, Player, TranslatingModel
from avb_service.discrete import ProductDistribution
from avb_service.distributions import DataSpec
from avb_service.errors import DataError
from avb_service.figures import (
    codes,
    cycles,
    draw,
    interpolation,
    latents,
    manifold,
    reconstructions,
    samples,
    sheet,
    to_array,
    to_png,
    training_curves,
    traversal,
)
from avb_service.figures import points as figure_of_points
from avb_service.figures.canvas import HEADER, MARGIN, STRIP, columns_for, mosaic
from avb_service.figures.probe import quantiles, still
from avb_service.maths import standard_normal


def spec(shape: tuple[int, int, int], values: str = "binary") -> DataSpec:
    return DataSpec(shape, values, 1, torch.full(shape, 0.5))


class Linear(LatentVariableModel):
    """A linear-Gaussian encoder with a Bernoulli decoder; dropout tells training from evaluation."""

    def __init__(self, dim: int, shape: tuple[int, int, int] = (1, 8, 8)) -> None:
        super().__init__(None, spec(shape))
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.encoder = nn.Sequential(nn.Flatten(), nn.Dropout(), nn.Linear(int(np.prod(shape)), dim))
            self.decoder = nn.Sequential(nn.Linear(dim, int(np.prod(shape))), nn.Dropout())

    def players(self) -> tuple[Player, ...]:
        return ()

    def prior(self) -> Distribution:
        return standard_normal(self.decoder[0].in_features, self.decoder[0].weight)

    def likelihood(self, z: Tensor) -> Distribution:
        self.seen = z
        return Independent(Bernoulli(logits=4 * self.decoder(z).unflatten(-1, self.spec.shape)), 3)

    def posterior(self, x: Tensor) -> Distribution:
        return Independent(Normal(self.encoder(x), 0.3), 1)


class Identity(Linear):
    """Codes are the data themselves."""

    def likelihood(self, z: Tensor) -> Distribution:
        self.seen = z
        return Independent(Bernoulli(probs=z.clamp(0, 1).unflatten(-1, self.spec.shape), validate_args=False), 3)

    def posterior(self, x: Tensor) -> Distribution:
        return Independent(Normal(x.flatten(1), 1e-9), 1)


class Bits(Linear):
    def prior(self) -> Distribution:
        return Independent(Bernoulli(torch.full((2,), 0.5)), 1)


class Mixture(Linear):
    def prior(self) -> Distribution:
        return MixtureSameFamily(Categorical(torch.ones(1)), Independent(Normal(torch.zeros(1, 2), 1.0), 1))


class Collapsed(Linear):
    def posterior(self, x: Tensor) -> Distribution:
        return Independent(Normal(torch.zeros(len(x), 4), 1e-30), 1)


class Implicit(Algorithm):
    def players(self) -> tuple[Player, ...]:
        return ()

    def sample(self, n: int) -> Tensor:
        return torch.rand(n, *self.spec.shape)


@pytest.fixture(scope="module")
def x() -> Tensor:
    return torch.bernoulli(torch.full((40, 1, 8, 8), 0.4), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def labels() -> Tensor:
    return torch.arange(40) % 10


HISTORY = [
    {
        "round": 10 * r,
        "model/loss": 30 + 500 * 0.1**r,
        "adversary/accuracy": 0.6,
        "validation/log_likelihood.lower_bound": -r,
    }
    for r in range(41)
]


def words(figure: Figure) -> str:
    return " ".join(text.get_text() for text in figure.texts)


def points(figure: Figure) -> np.ndarray:
    clouds = [c for c in figure.axes[0].collections if isinstance(c, PathCollection)]
    return np.concatenate([np.asarray(cloud.get_offsets()) for cloud in clouds])


def test_leaves_no_trace(x: Tensor, labels: Tensor) -> None:
    model = Linear(3).train()
    model.decoder[1].eval()
    settings, torch_state, numpy_state = dict(matplotlib.rcParams), torch.get_rng_state(), np.random.get_state()[1]
    draw(model, x, labels, HISTORY)
    assert torch.equal(torch_state, torch.get_rng_state())
    assert np.array_equal(numpy_state, np.random.get_state()[1])
    assert dict(matplotlib.rcParams) == settings
    assert model.encoder[1].training and model.training and not model.decoder[1].training
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert not model.seen.requires_grad


def test_restores_the_model_after_an_error() -> None:
    model, state = Linear(2).train(), torch.get_rng_state()
    with pytest.raises(ZeroDivisionError), still(model, "samples", 0):
        torch.rand(1)
        raise ZeroDivisionError
    assert all(module.training for module in model.modules()) and torch.is_grad_enabled()
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("dim", [2, 5])
def test_same_model_gives_the_same_pictures(dim: int, x: Tensor, labels: Tensor) -> None:
    pictures = []
    for state in range(2):
        torch.manual_seed(state)
        np.random.seed(state)
        pictures.append({name: to_png(figure) for name, figure in draw(Linear(dim), x, labels, HISTORY).items()})
    assert pictures[0] == pictures[1]


def test_seed_and_model_change_the_picture(x: Tensor) -> None:
    base = to_png(samples(Linear(2)))
    assert to_png(samples(Linear(2), seed=1)) != base
    assert to_png(samples(Linear(3))) != base


@pytest.mark.parametrize(
    ("model", "names"),
    [
        (Linear(2), {"samples", "reconstructions", "latents", "interpolation", "manifold", "traversal"}),
        (Linear(4), {"samples", "reconstructions", "latents", "interpolation", "traversal"}),
        (Linear(1), {"samples", "reconstructions", "latents", "interpolation", "traversal"}),
        (Bits(2), {"samples", "reconstructions", "latents"}),
        (Mixture(2), {"samples", "reconstructions", "latents", "interpolation", "manifold", "traversal"}),
        (Implicit(None, spec((3, 8, 8))), {"samples"}),
    ],
)
def test_draws_what_applies(model: Algorithm, names: set[str], x: Tensor) -> None:
    assert set(draw(model, x)) == names
    assert set(draw(model, x[:1])) == names - {"interpolation"}


def test_history_adds_curves(x: Tensor) -> None:
    assert "training_curves" in draw(Implicit(None, spec((1, 8, 8))), x, history=HISTORY)
    assert "training_curves" not in draw(Implicit(None, spec((1, 8, 8))), x, history=[])


# What plots say of themselves.

SUBJECT = "bernoulli_vae of digits_and_letters.npz and digits, 64 latents, round 20000"


def everything(x: Tensor, labels: Tensor) -> dict[str, Figure]:
    """A plot of every kind."""
    pairs, numbers = Points(torch.tensor([[0.0, 1.0], [2.0, 1.0]])), Points(torch.tensor([[0.5]]))
    models = {
        "plane": Linear(2),
        "line": Linear(1),
        "many": Linear(17),
        "coded": Coded(),
        "shift": Shift(),
        "pairs": pairs,
        "numbers": numbers,
    }
    more = {"model/a_long_name_of_something": 3.0, "model/another_name": 2.0, "validation/kl": 1.0}
    history = [{**report, **{name: value * report["round"] for name, value in more.items()}} for report in HISTORY]
    figures = {}
    for kind, model in models.items():
        channels, height, width = model.spec.shape
        drawn = draw(
            model,
            x[:, :channels, :height, :width],
            labels,
            history if kind == "plane" else None,
            other=x[:, :, :4, :4],
            subject=SUBJECT,
            data="validation data",
        )
        figures |= {f"{kind}, {name}": figure for name, figure in drawn.items()}
    for figure in figures.values():
        figure.draw_without_rendering()
    return figures


@pytest.fixture(scope="module")
def drawn(x: Tensor, labels: Tensor) -> dict[str, Figure]:
    return everything(x, labels)


def test_no_legend_covers_what_is_drawn(drawn: dict[str, Figure]) -> None:
    legends = [(name, axes) for name, figure in drawn.items() for axes in figure.axes if axes.get_legend()]
    assert len(legends) >= 8
    for name, axes in legends:
        covered = Bbox.intersection(axes.get_legend().get_window_extent(), axes.get_window_extent())
        assert covered is None or min(covered.width, covered.height) < 1, name


def test_plots_name_the_model_and_those_that_show_data_whose(drawn: dict[str, Figure], x: Tensor) -> None:
    others = everything(1 - x, torch.zeros(len(x)))
    for name, figure in drawn.items():
        assert SUBJECT in words(figure)
        depends = to_png(figure) != to_png(others[name])
        assert ("validation data" in words(figure)) == depends, name


def test_words_stay_within_the_plot(drawn: dict[str, Figure]) -> None:
    for name, figure in drawn.items():
        for text in [*figure.texts, *(text for axes in figure.axes for text in axes.texts)]:
            box = text.get_window_extent()
            assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1, (name, text.get_text())


def test_a_caption_stands_below_the_subtitle_and_above_what_is_drawn(drawn: dict[str, Figure]) -> None:
    for name, figure in drawn.items():
        _, subtitle, named = (text.get_window_extent() for text in figure.texts)
        assert subtitle.y0 >= named.y1 - 3, name
        assert named.y0 > max(axes.get_tightbbox().y1 for axes in figure.axes), name


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 8, 8), (2, 8, 8), (13, 8, 8), (1, 1, 4), (1, 1, 20)])
def test_shapes_of_data(shape: tuple[int, int, int]) -> None:
    x = torch.rand(9, *shape, generator=torch.Generator().manual_seed(0))
    for figure in draw(Linear(2, shape), x).values():
        height, width, channels = to_array(figure).shape
        assert channels == 3 and 200 <= width <= 1400 and 100 <= height <= 1400


def test_mosaic_pixels_are_exact_squares() -> None:
    tiles = torch.rand(4, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    picture = to_array(mosaic(tiles, "title", "subtitle", [2], gap=4))
    scale = 32
    for i, tile in enumerate(tiles):
        top, left = HEADER + (i // 2) * (5 * scale + 4), MARGIN + (i % 2) * (5 * scale + 4)
        shown = picture[top : top + 5 * scale, left : left + 5 * scale].reshape(5, scale, 5, scale, 3)
        assert (shown == shown[:, :1, :, :1]).all()
        assert np.array_equal(shown[:, 0, :, 0], (255 * tile).round().byte().permute(1, 2, 0).numpy())


def test_vectors_are_strips_told_from_the_page() -> None:
    picture = to_array(mosaic(torch.tensor([0.0, 1.0, torch.nan]).reshape(1, 1, 1, 3), "title", "subtitle", [1]))
    assert [picture[HEADER + 1, MARGIN + 1 + 32 * i].tolist() for i in range(3)] == [
        STRIP[0].tolist(),
        STRIP[1].tolist(),
        [255, 255, 255],
    ]


@pytest.mark.parametrize("shape", [(1, 1, 4), (1, 1, 20), (1, 1, 784), (1, 8, 8), (3, 8, 8), (2, 1, 9)])
def test_words_beside_rows_and_above_columns_are_apart(shape: tuple[int, int, int]) -> None:
    figure = traversal(Linear(16, shape))
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for axes in figure.axes for text in axes.texts]
    assert len(boxes) == 16 + 11
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))


@pytest.mark.parametrize(("tiles", "columns"), [((64, 8, 8), 8), ((64, 1, 4), 4), ((40, 16, 8), 8), ((1, 1, 9), 1)])
def test_columns(tiles: tuple[int, int, int], columns: int) -> None:
    assert columns_for(*tiles) == columns


def test_reconstructions_stand_below_their_data(x: Tensor) -> None:
    picture = to_array(reconstructions(Identity(64), x[:2]))
    body = picture[HEADER:-MARGIN, MARGIN:-MARGIN]
    half = (len(body) - 4) // 2
    assert np.array_equal(body[:half], body[half + 4 :])
    assert body[:half].std() > 0


def test_real_values_are_scaled_by_the_data() -> None:
    model = Identity(4, (1, 1, 4))
    model.spec = spec((1, 1, 4), "real")
    figure = reconstructions(model, torch.tensor([-2.0, 0.0, 1.0, 3.0]).reshape(1, 1, 1, 4))
    assert "−2 to 3" in words(figure)
    picture = to_array(figure)[HEADER + 1, MARGIN + 1 :: 32][:4]
    assert picture[0].tolist() == STRIP[0].tolist() and picture[3].tolist() == STRIP[1].tolist()


def test_spherical_paths_keep_their_length_and_their_ends() -> None:
    model = Identity(3, (1, 1, 3))
    x = torch.tensor([[3.0, 0, 0], [2.0, 0, 0], [0, 3.0, 0], [-2.0, 0, 0]])[:, None, None]
    assert "spherical" in words(interpolation(model, x, steps=5))
    turned, opposite = model.seen.unflatten(0, (2, 5))
    torch.testing.assert_close(turned.norm(dim=-1), torch.full((5,), 3.0))
    torch.testing.assert_close(turned[[0, -1]], x[[0, 2], 0, 0])
    torch.testing.assert_close(turned[2, :2], torch.full((2,), 3 / 2**0.5))
    torch.testing.assert_close(opposite[:, 0], torch.linspace(2, -2, 5))


def test_paths_on_a_plane_are_straight() -> None:
    model = Identity(2, (1, 1, 2))
    assert "linear" in words(interpolation(model, torch.tensor([[1.0, 0], [0, 1.0]])[:, None, None], steps=3))
    torch.testing.assert_close(model.seen, torch.tensor([[1, 0], [0.5, 0.5], [0, 1]]))


def test_interpolation_needs_a_pair(x: Tensor) -> None:
    with pytest.raises(DataError, match="given 1"):
        interpolation(Linear(2), x[:1])


def test_manifold_lies_like_the_plane_and_is_even_in_probability() -> None:
    model = Linear(2)
    manifold(model, side=4)
    codes = model.seen.unflatten(0, (4, 4))
    levels = Normal(0.0, 1.0).cdf(codes)
    torch.testing.assert_close(levels[0, :, 0], torch.tensor([0.125, 0.375, 0.625, 0.875]))
    torch.testing.assert_close(levels[:, 0, 1], torch.tensor([0.875, 0.625, 0.375, 0.125]))


@pytest.mark.parametrize("model", [Linear(3), Bits(2)])
def test_manifold_needs_a_plane(model: Linear) -> None:
    with pytest.raises(DataError, match="continuous code of 2"):
        manifold(model)


def test_quantiles_from_draws_agree_with_the_inverse_cdf() -> None:
    levels = torch.tensor([0.1, 0.5, 0.8])
    with still(Linear(2), "manifold", 0):
        drawn = quantiles(Mixture(2).prior(), levels)
    assert (drawn - quantiles(Linear(2).prior(), levels)).abs().max() < 0.12


def test_few_data_show_the_shape_of_each_posterior() -> None:
    model, x = Linear(2, (1, 1, 4)), torch.eye(4)[:, None, None]
    figure = latents(model, x)
    assert "4 data × 500 draws" in words(figure) and "t-SNE" not in words(figure)
    drawn = points(figure).reshape(500, 4, 2)
    expected = model.encoder.eval()(x).detach().numpy()
    np.testing.assert_allclose(drawn.mean(0), expected, atol=0.07)
    np.testing.assert_allclose(drawn.std(0), 0.3, atol=0.05)
    assert [t.get_text() for t in figure.axes[0].get_legend().get_texts()] == ["0", "1", "2", "3"]


def test_plane_shows_the_prior(x: Tensor) -> None:
    circles = latents(Linear(2), x).axes[0].patches
    assert [(c.width, c.height) for c in circles] == [(2, 2), (4, 4)]
    assert not latents(Mixture(2), x).axes[0].patches and len(points(latents(Mixture(2), x))) == 2000 + 40


def test_more_dimensions_go_through_t_sne(x: Tensor, labels: Tensor) -> None:
    figure = latents(Linear(5), x.repeat(20, 1, 1, 1), labels.repeat(20))
    assert "t-SNE of 5-D codes, 500 data" in words(figure) and len(points(figure)) == 500
    assert len(figure.axes[0].get_legend().get_texts()) == 10


def test_collapsed_codes_can_be_drawn(x: Tensor) -> None:
    assert np.isfinite(points(latents(Collapsed(4), x))).all()


@pytest.mark.parametrize(("classes", "legend"), [(15, 15), (30, 0)])
def test_many_classes(classes: int, legend: int, x: Tensor) -> None:
    figure = latents(Linear(2), x, torch.arange(40) % classes)
    shown = figure.axes[0].get_legend()
    assert (len(shown.get_texts()) if shown else 0) == legend
    assert len(points(figure)) == 40


def test_curves_have_a_panel_for_each_group_and_unit() -> None:
    last = {"round": 410, "adversary/loss": 1.3, "model/loss": float("nan"), "seconds": 3}
    figure = training_curves([*HISTORY, last])
    panels = [(a.get_legend().get_title().get_text(), a.get_ylabel()) for a in figure.axes if a.has_data()]
    assert panels == [
        ("model", "nats per datum"), ("adversary", "fraction"), ("validation", "nats per datum"),
        ("adversary", "nats per datum"),
    ]  # fmt: skip
    assert [t.get_text() for t in figure.axes[2].get_legend().get_texts()] == ["log likelihood, lower bound"]
    assert np.isfinite(figure.axes[0].lines[0].get_ydata()).all()


def test_curves_show_what_no_longer_name_says_and_each_under_its_unit() -> None:
    history = [
        {
            "round": r,
            "validation/parzen": 200.0 + r,
            "validation/parzen.bandwidth": 0.1,
            "validation/modes_found": 8,
            "validation/good_draws": 0.9,
        }
        for r in range(3)
    ]
    panels = {
        axes.get_ylabel(): [text.get_text() for text in axes.get_legend().get_texts()]
        for axes in training_curves(history).axes
        if axes.has_data()
    }
    assert panels == {
        "nats per datum": ["parzen"], "bandwidth": ["parzen, bandwidth"], "modes": ["modes found"],
        "fraction": ["good draws"],
    }  # fmt: skip


def test_curves_leave_error_bars_out() -> None:
    aside = {
        "validation/log_likelihood.iwae_8.own_error": 0.01,
        "validation/adversary.floor_stderr": 0.2,
        "validation/log_likelihood.iwae_8.stderr": 0.3,
    }
    assert to_png(training_curves([{**report, **aside} for report in HISTORY])) == to_png(training_curves(HISTORY))


def test_curves_are_not_flattened_by_the_transient() -> None:
    low, high = training_curves(HISTORY).axes[0].get_ylim()
    assert low < 30 < 31 < high < 40


def test_both_shapes_of_history_give_the_same_curves() -> None:
    names = [name for name in HISTORY[0] if name != "round"]
    series = {name: [(report["round"], report[name]) for report in HISTORY] for name in names}
    assert to_png(training_curves(series)) == to_png(training_curves(HISTORY))


def test_dense_curves_carry_their_running_mean() -> None:
    history = {"model/loss": [(r, float(r % 2)) for r in range(600)]}
    raw, mean = training_curves(history).axes[0].lines
    assert np.ptp(raw.get_ydata()) == 1 and np.ptp(mean.get_ydata()) < 1e-9


def test_curves_of_nothing_are_refused() -> None:
    with pytest.raises(DataError, match="given none"):
        training_curves([{"round": 1, "seconds": 2.0, "model/loss": float("inf")}])


def test_png_and_array_agree() -> None:
    figure = samples(Linear(2), n=4)
    file = to_png(figure)
    assert file.startswith(b"\x89PNG")
    assert np.array_equal(np.asarray(Image.open(BytesIO(file)).convert("RGB")), to_array(figure))


class Points(Implicit):
    """Draws numbers that are given."""

    def __init__(self, drawn: Tensor) -> None:
        super().__init__(None, spec((1, 1, drawn.shape[1]), "real"))
        self.drawn = drawn

    def sample(self, n: int) -> Tensor:
        return self.drawn.repeat(n // len(self.drawn) + 1, 1)[:n, None, None]


def test_pairs_are_a_cloud_over_the_data_in_the_frame_of_the_data():
    x = torch.tensor([[-1.0, 0.0], [3.0, 2.0]])[:, None, None]
    figure = draw(Points(torch.tensor([[0.0, 1.0], [90.0, 1.0]])), x)["samples"]
    [axes] = figure.axes
    data, drawn = [cloud for cloud in axes.collections if isinstance(cloud, PathCollection)]
    assert data.get_offsets().tolist() == x.flatten(1).tolist()
    assert drawn.get_offsets()[:2].tolist() == [[0.0, 1.0], [90.0, 1.0]]
    assert axes.get_xlim()[1] < 10
    assert any("50% of them outside" in text.get_text() for text in figure.texts)


def test_single_numbers_are_two_densities():
    figure = draw(Points(torch.tensor([[0.5]])), torch.linspace(0, 1, 50)[:, None, None, None])["samples"]
    [axes] = figure.axes
    heights = [patch.get_height() * patch.get_width() for patch in axes.patches[:40]]
    assert sum(heights) == pytest.approx(1)
    assert {text.get_text() for text in axes.get_legend().get_texts()} == {"data", "samples"}


def test_images_are_no_points():
    with pytest.raises(DataError, match=r"1 or 2 real numbers, given \[3, 8, 8\]"):
        figure_of_points(Implicit(None, spec((3, 8, 8))), torch.zeros(2, 3, 8, 8))


# Samples that are there already.


def test_small_images_are_shown_large_and_large_ones_say_how_small() -> None:
    tiles = torch.rand(64, 1, 8, 8).round()
    picture = to_array(sheet(tiles, Linear(2)))
    body = picture[HEADER:-MARGIN, MARGIN:-MARGIN]
    scale = (body.shape[1] - 7 * 4) // 64
    assert scale >= 8 and np.array_equal(body[: 8 * scale : scale, : 8 * scale : scale, 0], 255 * tiles[0, 0])
    assert "shown at" not in words(sheet(tiles, Linear(2)))
    assert "shown at 66%" in words(sheet(torch.zeros(64, 1, 240, 240), Linear(2, (1, 240, 240))))


@pytest.mark.parametrize(
    ("model", "means", "said"),
    [
        (Linear(2), True, "means of p(x|z)"),
        (Linear(2), False, "draws from p(x|z)"),
        (Implicit(None, spec((1, 8, 8))), False, "draws from the model"),
    ],
)
def test_samples_say_whether_they_are_means_or_draws(model: Algorithm, means: bool, said: str) -> None:
    assert said in words(sheet(torch.rand(4, 1, 8, 8), model, means))
    assert ("draws" in words(samples(model))) != isinstance(model, LatentVariableModel)


def test_what_a_generator_makes_is_not_called_a_mean_of_what_it_does_not_define() -> None:
    for figure in (sheet(torch.rand(4, 1, 2, 2), Coded()), samples(Coded())):
        assert "g(z)" in words(figure) and "p(x|z)" not in words(figure)


@pytest.mark.parametrize("width", [1, 2])
def test_points_are_shown_where_they_lie_without_data_too(width: int) -> None:
    drawn = torch.arange(20.0).reshape(-1, 1, 1, width)
    figure = sheet(drawn, Points(drawn.flatten(1)))
    low, high = figure.axes[0].get_xlim()
    assert low < 0 and 19 - width < high
    assert f"{len(drawn)} draws" in words(figure)


# Single numbers of a code, and translations.


def labels_of(figure: Figure) -> list[str]:
    """What stands above columns, from left to right, and beside rows, from top to bottom."""
    return [text.get_text() for text in figure.axes[0].texts]


@pytest.mark.parametrize("columns", [[5], [1, 3, 1]])
def test_words_stand_in_the_middle_of_their_columns_and_rows(columns: list[int]) -> None:
    figure = mosaic(torch.zeros(10, 1, 4, 4), "title", "subtitle", columns, group=1, heads="abcde", sides="xy")
    figure.draw_without_rendering()
    above, beside = (figure.axes[0].texts[part] for part in (slice(5), slice(5, None)))
    shown = to_array(figure)[..., 0] == 0
    edges = np.flatnonzero(np.diff(np.concatenate([[0], shown.sum(0) > 200, [0]]).astype(int)))
    for text, (left, right) in zip(above, edges.reshape(-1, 2), strict=True):
        box = text.get_window_extent()
        assert abs((box.x0 + box.x1) / 2 - (left + right) / 2) < 2
        assert box.y0 > figure.axes[0].bbox.y1
    assert all(text.get_window_extent().x1 < figure.axes[0].bbox.x0 for text in beside)
    assert [text.get_text() for text in beside] == ["x", "y"]


def test_a_traversal_changes_one_number_in_each_row() -> None:
    model = Linear(3)
    figure = traversal(model, steps=5)
    z = model.seen.unflatten(0, (3, 5))
    for d in range(3):
        assert (z[d, 1:, d] > z[d, :-1, d]).all()
        others = [k for k in range(3) if k != d]
        code = torch.cat([z[1, 0, :1], z[0, 0, 1:]])  # that which the rows have in common
        assert z[d][:, others].eq(code[others]).all()
    torch.testing.assert_close(z[0, 2, 0], torch.tensor(0.0), msg="the middle is the median")
    assert labels_of(figure) == ["0.1", "0.3", "0.5", "0.7", "0.9", "z₁", "z₂", "z₃"]
    assert to_png(figure) == to_png(traversal(model, steps=5))


def test_discrete_codes_have_no_traversal() -> None:
    with pytest.raises(DataError, match="discrete"):
        traversal(Bits(2))
    assert "traversal" not in draw(Bits(2), torch.rand(4, 1, 8, 8).round())
    assert "traversal" in draw(Linear(2), torch.rand(4, 1, 8, 8).round())


class Coded(CodedModel):
    """Three categories, two continuous codes, four numbers of noise."""

    def __init__(self) -> None:
        super().__init__(None, spec((1, 2, 2), "levels"))

    def players(self) -> tuple[Player, ...]:
        return ()

    def prior(self) -> ProductDistribution:
        return ProductDistribution(*self.recognise(torch.zeros(1)).parts, standard_normal(4, torch.zeros(1)))

    def recognise(self, x: Tensor) -> ProductDistribution:
        return ProductDistribution(OneHotCategorical(torch.ones(3)), standard_normal(2, torch.zeros(1)))

    def decode(self, z: Tensor) -> Tensor:
        self.seen = z
        return torch.sigmoid(z[..., :4]).unflatten(-1, (1, 2, 2))


def test_columns_are_categories_and_rows_the_other_codes() -> None:
    model = Coded()
    figures = draw(model, torch.rand(4, 1, 2, 2))
    assert {"codes", "samples"} == figures.keys()
    shown = labels_of(codes(model, steps=5))
    assert shown == ["0", "1", "2", *[""] * 5, *["0.1", "0.3", "0.5", "0.7", "0.9"] * 2]
    z = model.seen.unflatten(0, (15, 3))
    assert z[..., :3].eq(torch.eye(3)).all()
    rest = z[:, 0, 3:]
    assert z[..., 3:].eq(rest[:, None]).all(), "a row differs by the category alone"
    assert len(rest[:5].unique(dim=0)) == 5
    for code, row in ((0, 5), (1, 10)):
        swept = rest[row : row + 5]
        assert (swept[1:, code] > swept[:-1, code]).all()
        fixed = [k for k in range(6) if k != code]
        assert swept[:, fixed].eq(rest[0, fixed]).all()


class Shift(TranslatingModel):
    """Adds on the way there what it takes away on the way back."""

    def __init__(self) -> None:
        super().__init__(None, spec((1, 4, 4), "levels"))

    def players(self) -> tuple[Player, ...]:
        return ()

    def translate(self, other: Tensor) -> Tensor:
        return other + 0.5

    def translate_back(self, x: Tensor) -> Tensor:
        return x - 0.5

    def sample(self, n: int) -> Tensor:
        return torch.full((n, 1, 4, 4), 0.5)


def test_cycles_lead_there_and_back() -> None:
    x, y = torch.full((3, 1, 4, 4), 0.75), torch.full((3, 1, 4, 4), 0.25)
    figure = to_array(cycles(Shift(), x, y))
    column = figure[HEADER:-MARGIN, MARGIN + 8, 0]
    shades = [int(v) for i, v in enumerate(column) if v != 255 and (i == 0 or column[i - 1] != v)]
    assert shades == [191, 64, 191, 64, 191, 64]
    assert "cycles" in draw(Shift(), x)
