"""A model's name in the registry is looked at before it is trained."""

import pytest

from avb_service.errors import UserError
from avb_service.settings import read_config
from avb_service.tracking import RegisteredVersion, promotion, publish

ROW = {"version": 3, "aliases": (), "run_id": None, "created": 0.0, "metrics": {}}


@pytest.mark.parametrize(
    ("name", "tags", "reason"),
    [
        ("vae-digits", {}, "was not registered by this service"),
        ("vae-digits", {"method": "vae", "data": "mnist"}, "is a model of other data, mnist, and not of digits"),
        ("vae-digits", {"method": "gan", "data": "digits"}, "is a gan, which is not compared by the same estimate as"),
        ("vae-digits", {"method": "avb", "data": "digits"}, None),
        ("vae-digits", {"method": "a method of later days", "data": "digits"}, None),
        ("other", {}, None),
    ],
)  # fmt: skip
def test_a_name_of_another_kind_is_taken(monkeypatch, name, tags, reason):
    monkeypatch.setattr(promotion, "leaderboard", lambda uri: [RegisteredVersion(name=name, tags=tags, **ROW)])
    monkeypatch.setattr(publish, "check_experiment", lambda name, uri: None)
    config = read_config("vae_digits")
    assert config.tracking.model == "vae-digits"
    if reason is None:
        publish.check_names(config)
        return
    with pytest.raises(UserError, match=f"'vae-digits' is taken: models:/vae-digits/3 {reason}.*tracking.model"):
        publish.check_names(config)
