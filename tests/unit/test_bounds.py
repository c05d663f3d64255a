"""The plot of bounds shows what was given, and marks what is proven wrong and nothing else."""

from io import BytesIO
from itertools import pairwise

import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from avb_service.errors import DataError
from avb_service.figures import bounds, to_png
from avb_service.records import NATS, Estimate, Key, Kind

DATA = torch.linspace(-9.0, 9.0, 100, dtype=torch.float64)  # common to all estimates, so that they are paired
NOISE = torch.linspace(-0.1, 0.1, 100, dtype=torch.float64).flip(0)


def estimate(
    name: str, kind: Kind, value: float, n: int = 100, draws: int | None = None, noise: float | None = None
) -> Estimate:
    values = (DATA + NOISE * (len(name) % 3))[:n]
    return Estimate.of(Key(name, draws, noise), kind, {NATS: values - values.mean() + value})


ADVERSARY = estimate("elbo_adversarial", "estimate", -17.0)
CORRECTED = estimate("elbo_corrected", "estimate", -43.5)
CEILING = estimate("elbo_ceiling", "upper_bound", -43.0)
IWAE = estimate("iwae", "lower_bound", -33.0, draws=256)
AIS = estimate("ais", "lower_bound", -23.0)
EXACT = estimate("quadrature", "exact", -22.5)
GAP = 0.5
PROVEN = "proven wrong by at least"
BAD = [ADVERSARY, CORRECTED, CEILING, IWAE, AIS]


def words(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts]


def beside(figure: Figure, name: str) -> list[str]:
    """The numbers in the lines of that name, from top to bottom."""
    texts = figure.axes[0].texts
    return [number.get_text() for text, number in pairwise(texts) if text.get_text() == name]


def zones(figure: Figure) -> list[tuple[float, float]]:
    """Left and right end of each zone that can be seen, from top to bottom."""
    found = [p for p in figure.axes[0].patches if isinstance(p, Rectangle) and p.get_width() > 0]
    return [(p.get_x(), p.get_x() + p.get_width()) for p in sorted(found, key=lambda p: p.get_y())]


def markers(figure: Figure) -> dict[float, str]:
    lines = figure.axes[0].lines
    return {round(float(line.get_xdata()[0]), 6): line.get_marker() for line in lines if len(line.get_xdata()) == 1}


def test_every_estimate_has_its_row_and_the_marker_of_its_kind():
    figure = bounds([*BAD, EXACT])
    assert markers(figure) == {-17.0: "o", -43.5: "o", -43.0: "<", -33.0: ">", -23.0: ">", -22.5: "D"}
    shown = words(figure)
    for name in ("by the adversary", "by a fresh adversary", "IWAE, 256 draws", "AIS", "quadrature"):
        assert name in shown
    assert f"−17.00 ± {ADVERSARY.stderr:.2f}" in shown
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert [line.split(":")[0] for line in legend[:4]] == ["lower bound", "upper bound", "estimate", "exact"]


def test_no_elbo_is_above_the_ceiling_and_log_p_is_not_below_a_lower_bound():
    figure = bounds(BAD)
    left, right = figure.axes[0].get_xlim()
    assert zones(figure) == [pytest.approx((-43.0, right)), pytest.approx((left, -23.0))]
    assert left < -43.5 and right > -17.0


def test_no_elbo_is_above_an_exact_log_p():
    figure = bounds([ADVERSARY, EXACT])
    left, right = figure.axes[0].get_xlim()
    assert zones(figure) == [pytest.approx((-22.5, right)), pytest.approx((left, -22.5))]
    assert beside(figure, PROVEN) == ["5.5"]


def test_only_an_estimate_beyond_the_ceiling_is_proven_wrong():
    assert beside(bounds(BAD), PROVEN) == ["26.0"]
    assert PROVEN not in words(bounds(BAD[1:]))


@pytest.mark.parametrize(("spread", "proven"), [(0.1, True), (10.0, False)])
def test_chance_is_no_proof(spread, proven):
    """The mean is above by 0.3; what counts is how much the difference scatters, and not how much the data do."""
    scatter = spread * torch.tensor([-1.0, 1.0]).repeat(50)
    above = Estimate.of(Key("elbo_adversarial"), "estimate", {NATS: CEILING.per_datum + 0.3 + scatter.numpy()})
    assert beside(bounds([above, CEILING]), PROVEN) == ["0.3"] * proven


def test_estimates_of_fewer_data_prove_nothing_of_the_others():
    few = estimate("quadrature", "exact", -60.0, n=10)
    figure = bounds([ADVERSARY, AIS, few])
    assert "quadrature, 10 data" in words(figure)
    assert PROVEN not in words(figure)
    assert zones(figure) == [pytest.approx((figure.axes[0].get_xlim()[0], -23.0))]


def test_the_gap_stands_below_ais():
    shown = words(bounds([*BAD, EXACT], GAP))
    assert shown[shown.index("AIS") :][2:4] == ["gap on simulated data", "0.5"]
    assert "gap on simulated data" not in words(bounds(BAD)) + words(bounds([ADVERSARY, IWAE], GAP))


NOISY = [
    estimate("iwae_mixture", "lower_bound", 36.9, draws=16384, noise=0.125, n=50),
    estimate("ais", "lower_bound", -4120.0, noise=0.125),
    estimate("ais_prior", "lower_bound", 36.0, noise=0.125, n=50),
]
MODELS = {
    "AVB": BAD,
    "AVB, adversary wrong beyond measure": [estimate("elbo_adversarial", "estimate", 151234.2), *BAD[1:]],
    "AVB, adversary a little wrong": [estimate("elbo_adversarial", "estimate", -42.6), *BAD[1:4]],
    "VAE": [estimate("elbo", "lower_bound", -26.0), IWAE, AIS, EXACT],
    "GAN under noise": NOISY,
    "one estimate": [AIS],
}


@pytest.mark.parametrize("gap", [None, 0.01, 1.0, 400.0])
@pytest.mark.parametrize("model", MODELS)
def test_words_lie_on_nothing_else(model, gap):
    figure = bounds(MODELS[model], gap)
    figure.draw_without_rendering()
    axes, drawn = figure.axes[0], [line.get_window_extent() for line in figure.axes[0].lines]
    texts = [*figure.texts, *axes.texts, axes.xaxis.label, *axes.get_xticklabels(), *figure.legends[0].get_texts()]
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts if text.get_text()]
    whole = figure.bbox
    for i, (words, box) in enumerate(boxes):
        assert whole.x0 <= box.x0 and box.x1 <= whole.x1 and whole.y0 <= box.y0 and box.y1 <= whole.y1, words
        assert not [other for other, its in boxes[:i] if box.overlaps(its)], words
        assert not [line for line in drawn if box.overlaps(line)], words


def test_other_quantities_are_left_out():
    parzen = estimate("parzen", "estimate", 300.0)
    assert to_png(bounds([*BAD, parzen])) == to_png(bounds(BAD))
    with pytest.raises(DataError, match="needs an ELBO or a log-likelihood, given parzen"):
        bounds([parzen])
    with pytest.raises(DataError, match="given none"):
        bounds([])


def test_one_datum_has_no_bars_and_can_be_drawn():
    figure = bounds([estimate("iwae", "lower_bound", -33.0, n=1, draws=256)])
    assert "−33.00 ± nan" in words(figure)
    assert Image.open(BytesIO(to_png(figure))).size[0] > 800


def test_the_picture_is_the_same_every_time():
    assert to_png(bounds(BAD, GAP)) == to_png(bounds(BAD, GAP))
