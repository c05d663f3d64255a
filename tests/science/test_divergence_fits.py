"""A Gaussian fitted to two, by a game of draws, lands where quadrature says that each divergence is smallest."""

import pytest
import torch

from benchmarks.divergence_fits import fit, optimum

LANDED = ("kl", "reverse_kl", "pearson", "neyman", "squared_hellinger", "jensen_shannon")  # docs/methods.md: the rest
MEAN, SCALE = 0.05, 0.03  # three times the largest errors that were measured: 0.016 and 0.009


@pytest.mark.science
@pytest.mark.parametrize("name", LANDED)
def test_f_gan_finds_the_gaussian_of_the_smallest_divergence(name):
    torch.set_num_threads(1)
    found, best = fit(name), optimum(name)
    assert found.mean == pytest.approx(best.mean, abs=MEAN)
    assert found.scale == pytest.approx(best.scale, abs=SCALE)
