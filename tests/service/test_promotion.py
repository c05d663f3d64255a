"""Who becomes champion: a real registry, small models, records made to measure."""

import dataclasses
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from avb_service import rows
from avb_service.errors import UserError
from avb_service.fitting import Fit
from avb_service.model import Model
from avb_service.records import LIKELIHOOD, Certificate, Check, Diagnosis, Estimate, Key, LikelihoodRecord
from avb_service.tracking import Run, leaderboard, promotion, pull
from avb_service.tracking import publish as module
from avb_service.tracking.promotion import promote, record_of
from avb_service.tracking.publish import card, publish

pytestmark = [
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning"),
]
VALUES = torch.linspace(-40, -10, 30, dtype=torch.float64)


def record(values: torch.Tensor, gap: float = 0.05, data: str = "ab") -> LikelihoodRecord:
    checks = (Check("gap", gap, "<=", 0.2, "mean gap between the bounds, plus 2 s.e."),)
    return LikelihoodRecord(
        {"data_sha256": data},
        (Estimate.of(Key("ais"), "lower_bound", {"nats": values}),),
        Certificate(checks, -25.0, -24.9),
    )


def test_a_card_says_what_the_bounds_hold_for_and_what_speaks_against_the_adversary(experiment):
    made = record(VALUES)
    told = " ".join(card(experiment.model, made, "run").split())
    assert "no upper bound holds for real data" in told and "adversary" not in told
    told = card(
        experiment.model, dataclasses.replace(made, diagnosis=Diagnosis(10.0, 12.5, 2.5, 0.1, 0.0, 0.0, 0.05)), "run"
    )
    assert "What speaks against the adversary: **its ELBO is not to be believed**" in told
    assert "| KL below a Gaussian's with q's moments | 2.5 | <= 0.2 | NO |" in told


@pytest.fixture(scope="module")
def uri(tmp_path_factory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db"


@pytest.fixture(scope="module")
def experiment(small, tmp_path_factory) -> Fit:
    trained = Fit(small("vae", {"tracking.model": "vae"}), tmp_path_factory.mktemp("trained"))
    trained.run()
    return trained


@pytest.fixture
def register(experiment, uri, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "plots", lambda model: {})  # plots are not the matter here, and take seconds

    def published(made: LikelihoodRecord, run_id: str | None = None):
        run = Run.start("promotion", "run", experiment.config.tree(), uri=uri) if run_id is None else Run(run_id, uri)
        return publish(replace(experiment.model, likelihood=made), run, Path(tmp_path) / "model")

    return published


def champion(uri: str) -> str:
    (holder,) = [row for row in leaderboard(uri) if "champion" in row.aliases]
    return holder.uri


def test_a_model_becomes_champion_for_a_better_likelihood_with_a_certificate_only(register, uri):
    uncertified = register(record(VALUES, gap=0.5))
    assert uncertified.alias == "challenger"
    assert "mean gap between the bounds, plus 2 s.e.: 0.5, expected <= 0.2" in uncertified.reason

    first = register(record(VALUES))
    assert (first.alias, champion(uri)) == ("champion", first.uri)

    noise = 0.3 * torch.sin(11 * VALUES)
    level = register(record(VALUES + noise + 0.01))
    assert level.alias == "challenger"
    assert "no better than models:/vae/2 beyond two standard errors" in level.reason

    elsewhere = register(record(VALUES + 3, data="cd"))
    assert elsewhere.alias == "challenger"
    assert "different data" in elsewhere.reason

    far_but_uncertified = register(record(VALUES + 9, gap=7.0))
    assert far_but_uncertified.alias == "challenger"
    assert champion(uri) == first.uri

    better = register(record(VALUES + noise + 0.5))
    assert (better.alias, champion(uri)) == ("champion", better.uri)
    assert f"better than {first.uri}: +0." in better.reason
    tags = {row.uri: row.tags for row in leaderboard(uri)}
    assert tags[better.uri]["promotion"] == better.reason
    assert tags[better.uri]["certificate"] == "PASS"
    assert tags[uncertified.uri]["certificate"] == "lower bound only"


def test_a_run_has_the_numbers_of_its_model_once_also_where_registering_was_cut_off(register, uri, monkeypatch):
    from avb_service.tracking import registry
    from avb_service.tracking.server import connect

    def points() -> list[int]:
        names = [name for name in client.get_run(run).data.metrics if name.startswith("test/")]
        return [len(client.get_metric_history(run, name)) for name in names]

    def cut(*arguments: object) -> None:
        raise KeyboardInterrupt

    client = connect(uri)
    with monkeypatch.context() as killed, pytest.raises(KeyboardInterrupt):
        killed.setattr(registry, "_log_metrics", cut)
        register(record(VALUES - 100))
    run = max(leaderboard(uri), key=lambda row: row.version).run_id
    assert points() == []
    for _ in range(2):
        register(record(VALUES - 100), run)
        assert points() and set(points()) == {1}


@pytest.mark.parametrize("override", [None, "its samples are sharper"])
def test_of_two_promoted_at_once_the_second_is_compared_with_the_first(register, uri, monkeypatch, override):
    """Both are better than the champion that there was; the first becomes champion while the second is judged."""
    judge, versions = promotion.promotion, []
    with monkeypatch.context() as registering:  # as challengers, whatever they have earned
        registering.setattr(promotion, "promotion", lambda *given: ("challenger", "to be promoted by hand"))
        noise = 0.01 * torch.sin(11 * VALUES)
        for better in (1.0, 2.0):
            level = VALUES + noise + better + 10 * (override is not None)
            versions.append(int(register(record(level)).uri.rsplit("/", 1)[1]))
    worse, best = versions

    def judged_meanwhile(*given):
        found = judge(*given)
        monkeypatch.setattr(promotion, "promotion", judge)
        promote("vae", best, uri=uri)
        return found

    monkeypatch.setattr(promotion, "promotion", judged_meanwhile)
    if override is None:
        with pytest.raises(UserError, match=f"stays what it is: no better than models:/vae/{best}"):
            promote("vae", worse, uri=uri)
        assert champion(uri) == f"models:/vae/{best}"
    else:
        reason = promote("vae", worse, override, uri)
        assert reason.startswith(f"overridden ({override}), although no better than models:/vae/{best}")
        assert champion(uri) == f"models:/vae/{worse}"


def test_an_override_needs_a_reason_and_is_recorded(register, uri):
    worse = register(record(VALUES - 1))
    version = int(worse.uri.rsplit("/", 1)[1])
    with pytest.raises(UserError, match="no better than .* --override REASON makes it champion"):
        promote("vae", version, uri=uri)
    assert champion(uri) != worse.uri
    with pytest.raises(UserError, match="--override: given ' ', expected a reason"):
        promote("vae", version, override=" ", uri=uri)
    promote("vae", version, override="its samples are sharper", uri=uri)
    assert champion(uri) == worse.uri
    (row,) = [row for row in leaderboard(uri) if row.uri == worse.uri]
    assert row.aliases == ("champion",), "no challenger any more"
    assert row.tags["promotion"].startswith("overridden (its samples are sharper), although no better than")


def test_an_estimate_that_is_too_low_is_registered_as_such_and_never_champion(register, uri, experiment):
    made = record(VALUES + 20)
    higher = Estimate.of(Key("iwae", 256), "lower_bound", {"nats": VALUES + 25, "variance": torch.zeros(30)})
    low = Estimate.of(Key("ais"), "lower_bound", {"nats": VALUES + 20, "variance": torch.zeros(30)})
    short = dataclasses.replace(made, estimates=(low, higher))
    registered = register(short)
    assert registered.alias == "challenger"
    assert registered.reason == "ais is too low: iwae_256, as valid a bound, is 5.00 nats above it on the same 30 data"
    (row,) = (row for row in rows.leaderboard(leaderboard(uri)) if row["model"] == registered.uri)
    assert (row["log_likelihood"], row["log_likelihood_by"]) == (pytest.approx(-5), "ais")
    assert (row["shortfall"], row["shortfall_by"]) == (pytest.approx(5), "iwae_256")
    assert f"**{registered.reason}.**" in card(experiment.model, short, "run") and "too low" not in card(
        experiment.model, made, ""
    )


def test_a_champion_of_an_older_version_stays_champion_until_a_better_one_comes(register, uri):
    """Scored by iwae_refined beside ais, where newer ones have iwae_mixture."""

    def with_bound(values: torch.Tensor, name: str, draws: int) -> LikelihoodRecord:
        made = record(values, data="of then")
        return dataclasses.replace(
            made, estimates=(*made.estimates, Estimate.of(Key(name, draws), "lower_bound", {"nats": values - 0.1}))
        )

    older = register(with_bound(VALUES, "iwae_refined", 256))
    promote("vae", int(older.uri.rsplit("/", 1)[1]), override="other data", uri=uri)
    assert record_of(older.uri, uri).objection is None
    level = register(with_bound(VALUES, "iwae_mixture", 512))
    assert (level.alias, champion(uri)) == ("challenger", older.uri)
    assert "by ais on 30 data" in level.reason
    shown = {row["model"]: row for row in rows.leaderboard(leaderboard(uri))}
    assert shown[older.uri]["iwae_refined"] == shown[level.uri]["iwae_mixture"] == pytest.approx(-25.1)
    assert shown[older.uri]["iwae_mixture"] is shown[level.uri]["iwae_refined"] is None
    better = register(with_bound(VALUES + 1, "iwae_mixture", 512))
    assert champion(uri) == better.uri


def test_the_numbers_of_every_datum_travel_with_the_model(register, uri):
    made = record(VALUES - 5)
    read = record_of(register(made).uri, uri)
    assert np.array_equal(read.estimates[0].per_datum, made.estimates[0].per_datum)
    assert dataclasses.replace(read, estimates=()) == dataclasses.replace(made, estimates=())


def test_the_card_names_the_model_as_it_can_be_loaded(register, uri, tmp_path):
    published = register(record(VALUES - 20))
    assert published.alias == "challenger"
    card = Model.of_folder(pull(published.uri, tmp_path / "by_version", uri)).card
    (named,) = re.findall(r'load\("(.*)"\)', card)
    assert pull(named, tmp_path / "by_version", uri), "the same files, else the folder would be refused"


def test_a_promotion_that_was_cut_off_is_completed(register, uri):
    from avb_service.tracking.server import connect

    worse = register(record(VALUES - 200))
    version = worse.uri.rsplit("/", 1)[1]
    connect(uri).set_registered_model_alias("vae", "champion", version)  # and has not come to taking the other away
    assert promote("vae", int(version), uri=uri) == worse.reason
    (row,) = [row for row in leaderboard(uri) if row.uri == worse.uri]
    assert row.aliases == ("champion",)


def test_a_champion_that_no_longer_loads_does_not_block_the_next(register, uri, tmp_path):
    """Nothing is left of it but its record, and what leads to that; and its record is verified."""
    from avb_service.tracking.server import connect

    of_now = record(VALUES, data="of now")
    broken = register(of_now)
    promote("vae", int(broken.uri.rsplit("/", 1)[1]), override="other data", uri=uri)
    place = connect(uri).get_model_version_download_uri("vae", broken.uri.rsplit("/", 1)[1])
    (kept,) = Path(place.removeprefix("file://")).rglob(LIKELIHOOD)
    for name in ("weights.safetensors", "config.yaml", "card.md"):
        (kept.parent / name).unlink()
    with pytest.raises(UserError, match="weights.safetensors"):
        pull(broken.uri, tmp_path / "pulled", uri)
    assert register(of_now).reason.startswith(f"no better than {broken.uri}")
    content = kept.read_bytes()
    kept.write_bytes(content.replace(b"-40.0", b"-90.0", 1))
    assert "does not match its checksum" in register(record(VALUES + 1, data="of now")).reason
    kept.write_bytes(content)
    better = register(record(VALUES + 2, data="of now"))
    assert (better.alias, champion(uri)) == ("champion", better.uri)


def test_a_model_without_a_record_is_named(vae_folder, uri):
    from avb_service.folder import ModelFolder
    from avb_service.tracking import register as register_folder

    bare = dataclasses.replace(ModelFolder.read(vae_folder), more={}).write(vae_folder.parent / "bare")
    run = Run.start("promotion", "bare", {}, uri=uri)
    version = register_folder("bare", bare, run.run_id, uri=uri)
    for model in (f"models:/bare/{version}", f"runs:/{run.run_id}", str(bare)):
        with pytest.raises(UserError, match=f"{model} carries no held-out likelihoods; publish it anew"):
            record_of(model, uri)
    assert record_of(str(vae_folder), uri).basis == {"data_sha256": "ab"}
