"""What a search has found: rows, importances and plots, of a folder that a search has left and of trials made up."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest

import avb_service
from avb_service.errors import UserError
from avb_service.figures import to_png
from avb_service.figures.searches import Tried
from avb_service.tuning.look import importances, plots
from avb_service.tuning.space import SpaceConfig

RUNS = Path(__file__).parents[1] / "fixtures" / "release" / "runs"
SPACE = SpaceConfig.parse({
    "name": "x",
    "preset": "avb_digits",
    "space": {
        "algorithm.model.lr": {"loguniform": [1e-4, 1e-2]},
        "algorithm.latent_dim": {"choice": [2, 4]},
        "algorithm.encoder.trunk.activation": {"choice": ["relu", "elu"]},
    },
})  # fmt: skip


def trials(count: int) -> list[Tried]:
    """Whose objective depends on the learning rate, a little on the latents, and on nothing else."""
    rng, made = np.random.default_rng(0), []
    for i in range(count):
        rate, latents = float(10 ** rng.uniform(-4, -2)), int(rng.choice([2, 4]))
        settings = dict(zip(SPACE.space, (rate, latents, str(rng.choice(["relu", "elu"]))), strict=True))
        top = -24 - 3 * (math.log10(rate) + 3) ** 2 + 0.3 * (latents == 4)
        curve = [[100 * k, top - 5 / k] for k in range(1, 4)] if i else []
        made.append(Tried(curve[-1][1] if curve else None, curve, settings, 30.0, 20.0))
    return made


def test_the_setting_that_decides_is_named_and_shares_add_up():
    shares = importances(SPACE, trials(40))
    assert shares["algorithm.model.lr"] > 0.7 > 0.2 > shares["algorithm.encoder.trunk.activation"]
    assert sum(shares.values()) == pytest.approx(1.0)
    assert all(map(math.isnan, importances(SPACE, trials(3)).values())), "too few have reached anything"


@pytest.mark.parametrize(("count", "drawn"), [(0, 3), (1, 3), (3, 3), (12, 5)])
def test_every_search_can_be_drawn_also_one_that_has_just_begun(count, drawn):
    made = plots(SPACE, trials(count))
    assert len(made) == drawn and all(to_png(plot).startswith(b"\x89PNG") for plot in made.values())


def test_a_search_is_looked_at_as_its_folder_has_it(tmp_path):
    found = avb_service.search("search", storage=RUNS)
    assert found.search == "search-20261129-192652" and {row["status"] for row in found.trials} == {"finished"}
    first, second = found.trials
    assert first["objective"] > second["objective"]
    assert [row["settings"] for row in found.trials] == [
        [{"setting": "algorithm.latent_dim", "value": 2}],
        [{"setting": "algorithm.latent_dim", "value": 1}],
    ]
    assert set(found.plots) == {"rounds", "progress", "time"}
    assert first["trial"] in str(found) and "<img" in found._repr_html_()
    json.dumps(found.rows)
    shutil.copytree(RUNS / found.search, tmp_path / "search-20270101-000000")
    shutil.rmtree(tmp_path / "search-20270101-000000" / "trials")
    assert avb_service.search("search", storage=tmp_path).trials == ()


def test_a_search_that_there_is_none_of_is_answered_with_those_that_there_are(tmp_path):
    with pytest.raises(UserError, match="no search 'digits'; there are: search-20261129-192652. --storage names"):
        avb_service.search("digits", storage=RUNS)
    with pytest.raises(UserError, match="there are: none"):
        avb_service.search("digits", storage=tmp_path)
