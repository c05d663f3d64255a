"""The bound that searches compare by is as good for 256 latents as for 4."""

import pytest

from benchmarks.latents import LATENTS, measured

pytestmark = pytest.mark.science


@pytest.mark.parametrize("latents", LATENTS)
def test_the_mixture_is_never_below_the_best_of_the_others(latents):
    for row in measured([latents]):
        value = {name: found.value for name, found in row.bounds.items()}
        assert value["iwae_mixture"] > max(value.values()) - 0.05, row.model
        if row.exact is not None:
            assert abs(value["iwae_mixture"] - row.exact) < 0.05
            assert abs(value["ais"] - row.exact) < 0.05, "annealed from the same Gaussian"
