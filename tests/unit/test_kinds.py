"""What installed packages add is found by name, imported when it is named, held to what is strict, and told apart."""

import logging
import subprocess
import sys
from pathlib import Path

import pytest

from avb_service.algorithms import METHODS
from avb_service.build import build, load_data
from avb_service.cli.options import estimator
from avb_service.data.datasets import DataConfig, load
from avb_service.distributions import OBSERVATIONS
from avb_service.errors import UserError
from avb_service.fitting import Fit, best_model
from avb_service.kinds import DEVELOPMENT
from avb_service.likelihood import ESTIMATORS, Evaluator
from avb_service.model import Model
from avb_service.networks.adversaries import ADVERSARIES
from avb_service.networks.encoders import ENCODERS
from avb_service.networks.trunks import TRUNKS
from avb_service.service.about import datasets, methods
from avb_service.settings import ExperimentConfig, read_config

CODE = '''
from typing import ClassVar, Literal
import numpy as np
from torch import nn
from avb_service.algorithm import AlgorithmConfig
from avb_service.algorithms.vae import VAE, VAEConfig
from avb_service.data.sources import Pool, Source
from avb_service.data.splits import hold
from avb_service.distributions import BernoulliConfig
from avb_service.likelihood.elbo import elbo
from avb_service.networks.trunks import MLPConfig, Trunk
from pydantic import BaseModel

class WideConfig(MLPConfig):
    """Wide layers."""

    name: Literal["wide"] = "wide"
    extra: int = 1

class Statistics(MLPConfig):
    """A trunk that normalises over a batch."""

    name: Literal["statistics"] = "statistics"

    def features(self, shape):
        module, width = super().features(shape)
        return nn.Sequential(module, nn.BatchNorm1d(width)), width

class Misnamed(MLPConfig):
    name: Literal["another"] = "another"

class Lax(Trunk, extra="ignore"):
    name: Literal["lax"] = "lax"
    def features(self, shape): ...
    def generator(self, inputs, planes, shape, bias): ...

class Unfinished(Trunk):
    name: Literal["unfinished"] = "unfinished"

class MyConfig(VAEConfig):
    """Settings of mine."""

    name: Literal["mine"] = "mine"

class Mine(VAE):
    """A VAE by another name."""

    Config: ClassVar[type[AlgorithmConfig]] = MyConfig

def bits(config):
    x = np.random.default_rng(0).integers(0, 2, (60, 1, 2, 3))
    return Pool(hold(x, None, 1, config.resident_gib), 1)

BITS = Source("60 coin tosses", "binary", bits)

def twice(model, config):
    return elbo(model, 2 * config.elbo_draws)
'''
POINTS = """
[avb_service.methods]
mine = somebodys:Mine
vq_vae = somebodys:Mine
[avb_service.trunks]
wide = somebodys:WideConfig
statistics = somebodys:Statistics
misnamed = somebodys:Misnamed
lax = somebodys:Lax
unfinished = somebodys:Unfinished
number = somebodys:np
gone = somebodys:Gone
broken = somebodys_broken:Broken
[avb_service.sources]
bits = somebodys:BITS
[avb_service.estimators]
twice = somebodys:twice
[avb_service.presets]
mine_bits = somebodys_presets
lost_bits = somebodys_presets
"""
PRESET = "algorithm: {name: mine, encoder: {name: wide}}\ndata: {name: bits}\ntraining: {rounds: 4, report_every: 2}\n"
QUICK = ["likelihood.budget=quick", "likelihood.importance_draws=4", "training.batch_size=16"]


def install(folder: Path, package: str, version: str, points: str) -> None:
    """As pip leaves a package behind."""
    info = folder / f"{package}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
    (info / "entry_points.txt").write_text(points)


@pytest.fixture
def site(tmp_path, monkeypatch) -> Path:
    """A folder of installed packages, with one that adds a thing of each kind, and things that are none."""
    folder = tmp_path / "site"
    install(folder, "somebodys", "1.0", POINTS)
    (folder / "somebodys.py").write_text(CODE)
    (folder / "somebodys_broken.py").write_text("raise RuntimeError('half of it is missing')\n")
    (folder / "somebodys_presets").mkdir()
    (folder / "somebodys_presets" / "mine_bits.yaml").write_text(PRESET)
    monkeypatch.syspath_prepend(folder)
    yield folder
    for name in [name for name in sys.modules if name.startswith("somebodys")]:
        monkeypatch.delitem(sys.modules, name)


def wrong(*settings: str) -> str:
    with pytest.raises(UserError) as caught:
        read_config("vae_digits", settings)
    return str(caught.value)


def test_names_are_known_without_an_import_and_one_that_is_named_is_imported(site):
    code = (
        "import sys; from avb_service.networks.trunks import TRUNKS; from avb_service.service.about import methods;"
        "assert 'wide' in TRUNKS and 'mine' in [row['name'] for row in methods()] and 'somebodys' not in sys.modules;"
        "TRUNKS['wide']; assert 'somebodys' in sys.modules and 'somebodys_broken' not in sys.modules"
    )
    paths = [str(site), *filter(None, sys.path)]
    subprocess.run([sys.executable, "-c", f"import sys; sys.path[:0] = {paths}; {code}"], check=True)


def test_what_a_package_adds_trains_is_saved_and_is_scored_by_what_it_adds(site, tmp_path):
    config = read_config("mine_bits", QUICK)
    assert config.packages() == {"somebodys": "1.0"}
    assert config == ExperimentConfig.parse(config.tree())
    Fit(config, tmp_path / "run").run()
    model = best_model(config, tmp_path / "run")
    assert type(model.algorithm) is METHODS["mine"] and model.algorithm.encoder.features[1].out_features == 300
    x, _ = model.data("test")
    assert Evaluator(model.algorithm, config.likelihood).score("twice", x).recipe["draws"] == 32
    folder = model.write(tmp_path / "model")
    assert type(Model.of_folder(folder).algorithm) is METHODS["mine"]


def test_a_folder_says_which_package_it_was_made_with_where_that_is_missing_or_another(
    site, tmp_path, monkeypatch, caplog
):
    config = read_config("mine_bits", QUICK)
    model = Model(build(config, load_data(config).spec).eval(), config, 0)
    folder = model.write(tmp_path / "model")
    (site / "somebodys-1.0.dist-info").rename(site / "gone")
    install(site, "somebodys", "1.1", POINTS)
    monkeypatch.syspath_prepend(tmp_path / "another path, which is looked at anew")
    with caplog.at_level(logging.WARNING):
        Model.of_folder(folder)
    assert "made with somebodys 1.0, and here is 1.1; if it is not the same: pip install somebodys==1.0" in caplog.text
    monkeypatch.setattr(sys, "path", [each for each in sys.path if each != str(site)])
    with pytest.raises(UserError, match="somebodys 1.0, which is not installed: pip install somebodys==1.0"):
        Model.of_folder(folder)


def test_a_run_is_not_gone_on_with_under_another_version_of_the_package(site, tmp_path, monkeypatch):
    config = read_config("mine_bits", QUICK)
    Fit(config, tmp_path / "run").run()
    (site / "somebodys-1.0.dist-info").rename(site / "gone")
    install(site, "somebodys", "1.1", POINTS)
    monkeypatch.syspath_prepend(tmp_path / "another path, which is looked at anew")
    with pytest.raises(UserError, match=r"with somebodys 1\.0, and this is .* with somebodys 1\.1"):
        Fit(config, tmp_path / "run").run()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("misnamed", 'expected a section with the field name: Literal["misnamed"]'),
        ("lax", "expected a section that refuses unknown keys"),
        ("unfinished", "of avb_service.networks.trunks.Trunk with all its methods; it lacks features, generator"),
        ("number", "expected a subclass of avb_service.networks.trunks.Trunk"),
        ("gone", "cannot be imported: AttributeError"),
        ("broken", "cannot be imported: RuntimeError('half of it is missing')"),
    ],
)
def test_what_is_no_trunk_is_named_with_its_package_beside_all_else_that_is_wrong(site, name, said):
    message = wrong(f"algorithm.encoder.name={name}", "algorithm.decoder.hiden=[3]")
    assert f"algorithm.encoder: {name} is somebodys" in message and " of somebodys 1.0, " in message and said in message
    assert "algorithm.decoder.hiden: unknown key; did you mean hidden?" in message


def test_their_settings_are_as_strict_as_ours_and_theirs_are_among_the_nearest_names(site):
    message = wrong("algorithm.encoder={name: wide, extra: x, extro: 2}", "algorithm.decoder.name=wid")
    assert "algorithm.encoder.extra: given 'x', expected a valid integer" in message
    assert "algorithm.encoder.extro: unknown key; did you mean extra?" in message
    assert "algorithm.decoder.name: given 'wid', expected one of mlp, conv, affine" in message
    assert "did you mean wide?" in message
    assert "did you mean bits?" in wrong("data.name=bitz")


def test_a_name_that_two_claim_is_refused_with_both(site, monkeypatch):
    message = wrong("algorithm.name=vq_vae")
    assert "vq_vae is a name that avb-service itself and somebodys 1.0 have given to methods" in message
    install(site.parent / "more", "another", "2.0", "[avb_service.trunks]\nwide = another:Wide\n")
    monkeypatch.syspath_prepend(site.parent / "more")
    message = wrong("algorithm.encoder.name=wide")
    assert "wide is a name that another 2.0 and somebodys 1.0 have given to trunks; rename all but one" in message


def test_a_preset_that_its_package_lacks_is_named(site):
    with pytest.raises(UserError, match="lost_bits is somebodys_presets of somebodys 1.0, expected a package with the"):
        read_config("lost_bits")


def test_statistics_of_a_batch_are_refused_by_name(site):
    config = read_config("vae_digits", ["algorithm.encoder={name: statistics}"])
    with pytest.raises(UserError, match=r"its network encoder.features.1 is a BatchNorm1d.*use torch.nn.GroupNorm"):
        build(config, load(config.data).spec)


def test_lists_show_theirs_with_the_package_and_what_they_can_do_when_they_are_named(site):
    listed = {row["name"]: row for row in methods()}
    assert listed["mine"]["package"] == "somebodys 1.0" and listed["mine"]["presets"] == ["mine_bits"]
    assert listed["mine"]["draws"] is None and listed["vae"]["package"] is None
    (mine,) = methods("mine")
    assert mine["encodes"] and "lower_bound" in mine["log_likelihood"]
    assert {row["name"]: row["package"] for row in datasets()}["bits"] == "somebodys 1.0"
    about = {path: text for path, _, text in read_config("vae_digits").settings()}
    assert "wide (somebodys 1.0)" in about["algorithm.encoder.name"] and "bits (somebodys 1.0)" in about["data.name"]
    with pytest.raises(UserError, match=r"no method 'mina'; did you mean mine\?; there are "):
        methods("mina")


def test_what_is_being_written_is_used_by_the_variable_and_recorded(site, tmp_path, monkeypatch):
    (site / "mine_in_work.py").write_text(CODE.replace('"wide"', '"wider"').replace("WideConfig", "Wider"))
    monkeypatch.setenv(DEVELOPMENT, "wider=mine_in_work:Wider, coins=mine_in_work:BITS")
    assert "wider" in TRUNKS and "wider" not in ENCODERS and "coins" not in TRUNKS
    config = read_config("vae_digits", ["algorithm.encoder={name: wider}", "data={name: coins}", *QUICK])
    assert config.packages() == {DEVELOPMENT: "coins=mine_in_work:BITS,wider=mine_in_work:Wider"}
    folder = Model(build(config, load_data(config).spec).eval(), config, 0).write(tmp_path / "model")
    monkeypatch.delenv(DEVELOPMENT)
    with pytest.raises(UserError, match="made with AVB_PLUGINS=coins=mine_in_work:BITS,wider=mine_in_work:Wider; set"):
        Model.of_folder(folder)
    monkeypatch.setenv(DEVELOPMENT, "wider:mine_in_work")
    with pytest.raises(UserError, match="AVB_PLUGINS: given 'wider:mine_in_work', expected name=module:object"):
        DataConfig.parse({"name": "digits"})


def test_what_is_being_written_and_cannot_be_used_yet_is_told_what_it_lacks(site, monkeypatch):
    monkeypatch.setenv(DEVELOPMENT, "half=somebodys:Unfinished, gone=nowhere:Gone, twofold=somebodys:twice")
    with pytest.raises(UserError, match=r"gone is nowhere:Gone of AVB_PLUGINS .*; PYTHONPATH has to name its folder"):
        read_config("vae_digits", ["algorithm.encoder.name=half"])
    monkeypatch.setenv(DEVELOPMENT, "half=somebodys:Unfinished, twofold=somebodys:twice")
    message = wrong("algorithm.encoder.name=half", "data.name=half")
    lacks = "half is somebodys:Unfinished of AVB_PLUGINS half=somebodys:Unfinished, expected a"
    assert f"algorithm.encoder: {lacks} subclass" in message and "it lacks features, generator" in message
    assert f"data.name: {lacks}n avb_service.data.sources.Source" in message


def test_an_estimator_that_is_being_written_is_one_to_the_command_and_a_class_is_none(site, monkeypatch):
    monkeypatch.setenv(DEVELOPMENT, "twofold=somebodys:twice, wider=somebodys:WideConfig")
    assert estimator("twofold") == "twofold" and "twofold" in ESTIMATORS and "wider" not in ESTIMATORS


def test_ours_are_what_others_have_to_be():
    for table in (METHODS, TRUNKS, ENCODERS, ADVERSARIES, OBSERVATIONS, ESTIMATORS):
        assert all(table.objection(name, thing) is None for name, thing in table.own.items())
