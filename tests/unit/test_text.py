"""Text for a text setting is taken as it is written, wherever it is written; what is no text setting reads YAML."""

from typing import Annotated, Literal

import numpy as np
import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image
from pydantic import Field

from avb_service.config import Config
from avb_service.data.datasets import load
from avb_service.errors import ConfigError
from avb_service.likelihood import LikelihoodConfig
from avb_service.settings import ExperimentConfig, read_config, read_likelihood
from avb_service.trees import parse_yaml, to_yaml
from avb_service.tuning.space import SpaceConfig, read_space

READ_AS_SOMETHING_ELSE = (  # by YAML, if it reads them at all
    "set #1", "#1", "2024", "1e3", "0x1F", "1_000", ".5", "no", "on", "True", "~", "Null", "2024-01-01", "a: b", "[x]",
    "[", "{a}", "{a: b}", "*x", "&x y", "!tag", "!!str 5", "| x", "> x", "% x", "@x", "`x`", "? x", "- x", "'a' b",
    "a=b", " spaces ", "tab\there", "line\nbreak", "---", "...", '"', "'", "<<", "=", "a\\b",
)  # fmt: skip
# In a file, what follows an unquoted # is a comment, and brackets are brackets: these are scalars there.
SCALARS = ("2024", "1e3", "0x1F", "1_000", ".5", "no", "on", "True", "~", "Null", "2024-01-01", "007", "1.50", "12:30")


class Leaf(Config):
    name: Literal["leaf"] = "leaf"
    title: str = ""


class Stone(Config):
    name: Literal["stone"] = "stone"
    title: int = 0


class Garden(Config):
    title: str = "untitled"
    sign: str | None = None
    short: Annotated[str, Field(max_length=20)] | None = None
    paths: tuple[str, ...] = ()
    gates: str | tuple[str, ...] = ()
    names: dict[str, str] = {}
    mode: Literal["no", "off", "2"] = "no"
    size: int | None = None
    open: bool = False
    either: bool | int | str = False
    thing: Annotated[Leaf | Stone, Field(discriminator="name")] = Leaf()
    inner: "Garden | None" = None


def assigned(*assignments: str) -> Garden:
    tree, problems = Garden.assigned({}, assignments)
    assert not problems
    return Garden.parse(tree)


def read(text: str) -> Garden:
    return Garden.parse(parse_yaml(text, "test", Garden.meaning))


def not_quoted(text: str) -> bool:
    """Whether YAML, which is asked here apart from our own reading of it, would not call it quoted."""
    try:
        node = yaml.compose(text)
    except yaml.YAMLError:
        return True
    return not isinstance(node, yaml.ScalarNode) or node.style not in ("'", '"')


@given(st.one_of(st.sampled_from(READ_AS_SOMETHING_ELSE), st.text(min_size=1)).filter(not_quoted))
def test_an_assignment_takes_all_that_follows(text):
    assert assigned(f"title={text}").title == text
    assert assigned(f"inner.inner.title={text}").inner.inner.title == text
    assert assigned("thing.name=leaf", f"thing.title={text}").thing.title == text
    assert assigned(f"names.x={text}").names == {"x": text}
    assert assigned(f"sign={text}").sign == (None if text == "null" else text)


@pytest.mark.parametrize("field", ["title", "sign", "gates"])
@pytest.mark.parametrize(("text", "inside"), [("'null'", "null"), ('"a\\tb"', "a\tb"), ("'it''s'", "it's"), ("''", "")])
def test_quotation_marks_of_yaml_are_not_part_of_the_text(field, text, inside):
    assert getattr(assigned(f"{field}={text}"), field) == inside
    assert getattr(read(f"{field}: {text}"), field) == inside


@pytest.mark.parametrize("text", ["null", ""])
def test_a_text_setting_that_may_be_empty_is_emptied(text):
    assert assigned("sign=x", f"sign={text}").sign is None and read(f"sign: {text}").sign is None
    assert assigned(f"title={text}").title == text and read(f"title: {text}").title == text


@pytest.mark.parametrize("text", SCALARS)
def test_a_scalar_in_a_file_is_the_text_that_was_written(text):
    garden = read(
        f"title: {text}\nsign: {text}\nshort: {text}\npaths: [{text}, x]\ngates: {text}\nnames: {{{text}: {text}}}\n"
        f"inner: {{gates: [{text}]}}\nthing: {{name: leaf, title: {text}}}\n"
    )
    assert garden.title == garden.sign == garden.short == garden.gates == garden.thing.title == text
    assert garden.paths == (text, "x") and garden.names == {text: text} and garden.inner.gates == (text,)
    assert assigned(f"paths=[{text}, x]").paths == assigned(f"gates=[{text}, x]").gates == (text, "x")
    assert assigned(f"inner={{title: {text}}}").inner.title == text


def test_aliases_and_merged_mappings_are_read_where_they_stand():
    inner = "inner: &a {title: 2024, size: 7}\nsign: &b 1e3\nthing: {name: leaf, title: *b}"
    garden = read(f"{inner}\nnames: {{<<: {{x: no}}}}")
    assert garden.inner == Garden(title="2024", size=7)
    assert (garden.sign, garden.thing.title, garden.names) == ("1e3", "1e3", {"x": "no"})


def test_names_to_choose_among_are_text_as_well():
    assert [assigned(f"mode={name}").mode for name in ("no", " off ", "2", "'2'")] == ["no", "off", "2", "2"]
    assert [read(f"mode: {name}").mode for name in ("no", "off", "2")] == ["no", "off", "2"]
    assert read_config("vae_digits", ["data.binarisation=static"]).data.binarisation == "static"


def test_what_is_no_text_setting_is_what_yaml_reads():
    garden = assigned("size=5 # five", "open=yes", "either=2024", "thing.name=stone", "thing.title=0x1F")
    assert (garden.size, garden.open, garden.either, garden.thing.title) == (5, True, 2024, 31)
    assert assigned("either=no").either is False and assigned("size=null").size is None
    assert read("size: 0x10\nopen: on\neither: 1e3x").either == "1e3x"


def test_a_whole_number_may_be_written_with_an_exponent():
    assert assigned("size=1e4").size == read("size: 2E3").size * 5 == 10_000
    for text in ("1e-3", "10000.0"):  # no whole number, and one that is written as a fraction
        with pytest.raises(ConfigError, match="size: given .*, expected a valid integer"):
            assigned(f"size={text}")


def test_what_is_said_of_an_assignment_that_is_none():
    tree, (none, no_yaml, twice) = Garden.assigned({}, ["title", "size=1", "open=[", "names={x: 1, x: 2}"])
    assert tree == {"size": 1}
    assert none.startswith("--set title: expected PATH=VALUE") and no_yaml.startswith("--set open is not valid YAML")
    assert "the key 'x' is given twice" in twice


@given(st.one_of(st.sampled_from(READ_AS_SOMETHING_ELSE), st.sampled_from(SCALARS), st.text()))
@example("1e3")
def test_text_that_is_written_down_is_read_again(text):
    """By who knows the section, and by who does not."""
    tree = Garden(title=text, gates=(text,), sign=text, names={text: text}).tree()
    assert parse_yaml(to_yaml(tree), "test") == tree
    assert read(to_yaml(tree)).tree() == tree


@pytest.mark.parametrize("name", ["set #1", "2024", "no", "a: b", "1e3", "[x]", "{a}", " spaces ", "*x", "!tag", "#1"])
def test_a_folder_of_that_name_is_read(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / name).mkdir()
    for i in range(10):
        Image.fromarray(np.full((8, 8), i, dtype=np.uint8)).save(tmp_path / name / f"{i}.png")
    assignments = ["data={name: file}", f"data.path={name}", "algorithm.observation={name: gaussian}"]
    config = read_config("vae_digits", [*assignments, "training.batch_size=4"])
    assert config.data.path == name and config.anchored().data.path == str(tmp_path / name)
    assert len(load(config.data).train) == 8
    assert ExperimentConfig.parse(parse_yaml(config.to_yaml(), "again")) == config


def test_files_of_every_command_take_text_as_it_is_written(tmp_path):
    (tmp_path / "mine.yaml").write_text(
        "algorithm: {name: vae, latent_dim: 2}\ndata: {name: file, path: 2024, binarisation: static}\n"
        "tracking: {experiment: 2024-01-01, model: no}"
    )
    config = read_config(tmp_path / "mine.yaml")
    assert (config.data.path, config.tracking.experiment, config.tracking.model) == ("2024", "2024-01-01", "no")
    (tmp_path / "likelihood.yaml").write_text("budget: quick\ninflate: 1")
    assert read_likelihood(LikelihoodConfig(), tmp_path / "likelihood.yaml", None).inflate == 1


SPACE = """
name: 2024
preset: [vae_digits]
model: 1e3
set: {tracking.experiment: no, data: {name: file, path: 007, binarisation: static}, training.rounds: 0x10}
space: {algorithm.latent_dim: {choice: [2, 4]}, tracking.model: {choice: [no, 2024]}}
"""


def test_spaces_take_text_for_the_settings_that_they_set_and_search(tmp_path):
    (tmp_path / "space.yaml").write_text(SPACE)
    space = read_space(tmp_path / "space.yaml")
    assert (space.name, space.model) == ("2024", "1e3")
    chosen = {path: domain.choice for path, domain in space.space.items()}
    assert chosen == {"algorithm.latent_dim": (2, 4), "tracking.model": ("no", "2024")}
    trial = space.trial("vae_digits", {"tracking.model": "no"})
    assert (trial.tracking.experiment, trial.data.path[-4:], trial.training.rounds) == ("no", "/007", 16)
    assert SpaceConfig.parse(parse_yaml(to_yaml(space.tree()), "again")) == space
