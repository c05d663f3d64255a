"""A configuration is read strictly, and everything that is wrong with it is said at once."""

import math
import pickle
from typing import Annotated, Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, ValidationError
from torch import nn

from avb_service.algorithms import METHODS
from avb_service.config import Config
from avb_service.errors import ConfigError, UserError
from avb_service.likelihood.config import LikelihoodConfig
from avb_service.optim import ScheduleConfig, TurnConfig
from avb_service.settings import PRESETS, ExperimentConfig, read_config, read_likelihood, read_preset
from avb_service.trees import difference, flatten, override, parse_yaml


class Circle(Config):
    name: Literal["circle"] = "circle"
    radius: Annotated[float, Field(gt=0)] = 1.0


class Polygon(Config):
    name: Literal["polygon"] = "polygon"
    corners: Annotated[tuple[int, ...], Field(min_length=3)] = (1, 2, 3)


class Canvas(Config):
    shape: Annotated[Circle | Polygon, Field(discriminator="name")] = Circle()
    width: Annotated[int, Field(ge=1)] = 10
    height: int = 10
    title: str = "untitled"
    grid: bool = False
    zoom: float | None = None

    def problems(self):
        yield from super().problems()
        if self.height > self.width:
            yield f"height: {self.height} is more than width {self.width}"


class Required(Config):
    shape: Annotated[Circle | Polygon, Field(discriminator="name")]
    canvas: Canvas = Canvas()
    title: str


def problems(model: type[Config], tree) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        model.parse(tree)
    return caught.value.problems


ATOMS = {
    "int": st.integers(-(2**50), 2**50),
    "float": st.floats(allow_nan=False, allow_infinity=False),
    "str": st.text(),
    "bool": st.booleans(),
    "none": st.none(),
    "list": st.lists(st.integers(), max_size=2),
    "dict": st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
}
ACCEPTED = {
    "height": ("int",), "title": ("str",), "grid": ("bool",), "zoom": ("int", "float", "none"),
}  # fmt: skip


@pytest.mark.parametrize("field", ACCEPTED)
@given(data=st.data())
def test_only_the_declared_type_is_taken(field, data):
    kind = data.draw(st.sampled_from(sorted(ATOMS)))
    value = data.draw(ATOMS[kind])
    tree = {"width": 2**51, field: value}
    if kind in ACCEPTED[field]:
        parsed = getattr(Canvas.parse(tree), field)
        assert parsed == value
        assert isinstance(parsed, type(value)) or (isinstance(parsed, float) and kind == "int")
    else:
        [line] = problems(Canvas, tree)
        assert line.startswith(f"{field}: given {value!r}, expected ")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("width", "5"), ("width", 5.0), ("width", True), ("width", 0), ("width", None), ("width", math.nan),
        ("zoom", "5"), ("zoom", True), ("zoom", math.nan), ("zoom", math.inf), ("zoom", -math.inf),
        ("grid", 1), ("grid", "true"), ("title", 5), ("title", True),
        ("shape", 5), ("shape", None), ("shape", "circle"),
    ],
)  # fmt: skip
def test_a_bad_value_is_named_with_its_path(field, value):
    [line] = problems(Canvas, {field: value})
    assert line.startswith(f"{field}: given {value!r}, expected ")


@given(st.text(min_size=1).filter(lambda key: key not in Canvas.model_fields))
def test_an_unknown_key_is_never_ignored_and_breaks_no_line(key):
    [line] = problems(Canvas, {key: 1})
    escaped = "".join(each if each.isprintable() else repr(each)[1:-1] for each in key)
    assert line.isprintable() and line.startswith(f"{escaped}: unknown key; ")


@pytest.mark.parametrize(
    ("tree", "line"),
    [
        ({"widht": 1}, "widht: unknown key; did you mean width? known here: grid, height, shape, title, width, zoom"),
        ({"shape": {"name": "circle", "raduis": 2}},
         "shape.raduis: unknown key; did you mean radius? known here: name, radius"),
        ({"shape": {"name": "polygon", "raduis": 2}}, "shape.raduis: unknown key; known here: corners, name"),
        ({"shape": {"name": "polygone"}},
         "shape.name: given 'polygone', expected one of circle, polygon; did you mean polygon?"),
        ({"shape": {"radius": 2}},
         "shape: needs a 'name' that selects its kind, one of circle, polygon; given {'radius': 2}"),
        ({"shape": {"name": "polygon", "corners": ["2", 3]}}, "shape.corners.0: given '2', expected a valid integer"),
        ({"height": 11}, "height: 11 is more than width 10"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_so_that_it_can_be_mended(tree, line):
    assert problems(Canvas, tree) == [line]


def test_all_errors_are_reported_at_once():
    tree = {
        "shape": {"name": "circle", "radius": -1, "colour": "red"},
        "grid": 1,
        "zoom": math.nan,
        "hight": 3,
        "height": 11,
        "title": 7,
    }
    expected = {"shape.radius", "shape.colour", "grid", "zoom", "hight", "height", "title"}
    lines = problems(Canvas, tree)
    assert {line.split(":")[0] for line in lines} == expected
    assert len(lines) == len(expected)


def test_cross_field_checks_of_inner_sections_carry_their_path():
    tree = {"shape": {"name": "circle"}, "title": "t", "canvas": {"height": 11}}
    assert problems(Required, tree) == ["canvas.height: 11 is more than width 10"]


@pytest.mark.parametrize("given", [{"widht": 20}, {"width": "20"}, {"width": -20}])
def test_no_default_that_stands_in_for_a_mistake_is_held_against_anything(given):
    lines = problems(Required, {"shape": {"name": "circle"}, "title": "t", "canvas": {"height": 11, **given}})
    assert [line.split(":")[0] for line in lines] == [f"canvas.{key}" for key in given]


def test_a_mistake_elsewhere_hides_no_pair_that_does_not_go_together():
    lines = problems(Canvas, {"height": 11, "width": 10, "widht": 20, "titel": "t", "grid": 1})
    assert {line.split(":")[0] for line in lines} == {"widht", "titel", "grid", "height"}


def test_what_is_missing_is_named():
    assert problems(Required, {}) == ["shape: required, but not given", "title: required, but not given"]


@pytest.mark.parametrize(
    "tree",
    [
        {"shape": {"name": "circle"}, "title": 5}, {"shape": {"name": "square"}, "title": "t"},
        {"shape": 5, "title": "t"},
    ],
)  # fmt: skip
def test_what_was_given_wrongly_is_not_called_missing_as_well(tree):
    [line] = problems(Required, tree)
    assert "required" not in line


@pytest.mark.parametrize("tree", [None, [], 5, "text"])
def test_a_tree_has_to_be_a_mapping(tree):
    [line] = problems(Canvas, tree)
    assert line == f"(top): given {tree!r}, expected a section, with keys among {', '.join(Canvas.model_fields)}"


@pytest.mark.parametrize("text", ["2020-01-01: 5", "3: 5", "null: 5", "true: 5", "1.5: 5"])
def test_keys_that_yaml_does_not_take_for_text_are_unknown(text):
    [line] = problems(Canvas, parse_yaml(text, "test"))
    assert "unknown key" in line


def test_the_message_counts_and_names_the_source():
    with pytest.raises(ConfigError, match=r"(?s)^my\.yaml: 2 problems\n  width: .*\n  title: "):
        Canvas.parse({"width": 0, "title": 1}, "my.yaml")
    with pytest.raises(ConfigError, match=r"^my\.yaml: 1 problem\n"):
        Canvas.parse({"width": 0}, "my.yaml")


def test_settings_are_listed_with_what_their_sections_say_of_them():
    class Frame(Canvas):
        """A canvas with a border.

        Attributes:
            zoom: how much larger it is drawn than it
                is.
            nothing: that is no field.

        Raises:
            title: never.
        """

    rows = {path: (value, about) for path, value, about in Frame().settings("frame.")}
    assert list(rows)[:3] == ["frame.shape", "frame.shape.name", "frame.shape.radius"]
    assert rows["frame.shape"] == ({"name": "circle", "radius": 1.0}, "")
    assert rows["frame.shape.name"] == ("circle", "which kind it is.")
    assert rows["frame.zoom"] == (None, "how much larger it is drawn than it is.")
    assert rows["frame.title"] == ("untitled", "") and "frame.nothing" not in rows


def test_sections_are_frozen_and_check_their_defaults():
    class Wrong(Config):
        width: Annotated[int, Field(ge=1)] = 0

    assert problems(Wrong, {}) == ["width: given 0, expected greater than or equal to 1"]
    with pytest.raises(ValidationError, match="frozen"):
        Canvas().width = 5


# The experiment's own tree.


@pytest.mark.parametrize("preset", PRESETS.own)
def test_presets_parse_and_survive_a_round_trip(preset):
    config = read_config(preset)
    assert ExperimentConfig.parse(config.tree()) == config
    assert ExperimentConfig.parse(parse_yaml(config.to_yaml(), preset)) == config


def test_every_method_has_a_preset():
    assert {read_config(preset).algorithm.name for preset in PRESETS.own} == METHODS.own.keys()


@pytest.mark.parametrize("preset", PRESETS.own)
def test_no_misspelt_key_of_a_preset_goes_unnoticed(preset):
    tree = read_preset(preset)
    for path in flatten(tree):
        parent, _, key = path.rpartition(".")
        misspelt = f"{parent}.{key}_x".lstrip(".")
        lines = problems(ExperimentConfig, override(tree, misspelt, 1))
        assert any(line.startswith(f"{misspelt}: unknown key") for line in lines), misspelt


def test_settings_on_top_of_a_preset():
    config = read_config("avb_digits", ["algorithm.adversary.steps=3", "algorithm.model.lr=0.07", "training.ema=0.77"])
    assert (config.algorithm.adversary.steps, config.algorithm.model.lr, config.training.ema) == (3, 0.07, 0.77)
    lines = difference(read_config("avb_digits").tree(), config.tree())
    assert [line.split(":")[0] for line in lines] == [
        "algorithm.adversary.steps",
        "algorithm.model.lr",
        "training.ema",
    ]


def test_an_unknown_preset_is_answered_with_the_nearest_and_where_all_are_listed():
    with pytest.raises(UserError, match="nor a preset; did you mean vae_digits or .*[?] `avb methods` lists") as told:
        read_preset("vae_digit")
    assert "sbn" not in str(told.value), "far from it"
    with pytest.raises(UserError, match="^nowhere.yaml: neither a file nor a preset; `avb methods` lists"):
        read_preset("nowhere.yaml")


@pytest.mark.parametrize(
    ("assignment", "path"),
    [
        ("algorithm.model.lr=0", "algorithm.model.lr"), ("algorithm.model.steps=0", "algorithm.model.steps"),
        ("algorithm.model.betas=[0.9, 1.1]", "algorithm.model.betas.1"), ("training.ema=1", "training.ema"),
        ("algorithm.model.optimizer=Adamm", "algorithm.model.optimizer"),
        ("algorithm.model.optimizer=functional", "algorithm.model.optimizer"),
        ("algorithm.model.options={momentun: 1}", "algorithm.model"), ("training.dtype=float16", "training.dtype"),
        ("training.logical_workers=3", "training.logical_workers"), ("scaling.workers=2", "scaling.workers"),
        ("data.binarisation=none", "algorithm.observation"), ("tracking.model=a/b", "tracking.model"),
        ("algorithm.encoder.hidden=[]", "algorithm.encoder.hidden"), ("data.name=mnits", "data.name"),
    ],
)  # fmt: skip
def test_what_cannot_be_run_is_refused_by_path(assignment, path):
    with pytest.raises(ConfigError) as caught:
        read_config("vae_digits", [assignment])
    [line] = caught.value.problems
    assert line.startswith(f"{path}: ")


@pytest.mark.parametrize("name", [" ", "tail ", " lead", "a@b", "a?b", "a\nb", "a\tb", "x" * 257])
def test_a_name_by_which_no_model_is_found_again_is_refused_before_training(name):
    with pytest.raises(ConfigError, match=r"tracking\.model: given .* MLflow refuses others, or does not find"):
        read_config("vae_digits", [f"tracking.model={name}"])


@pytest.mark.parametrize("assignment", ["=5", " =5", ".data=x", "data..name=x", "data.=x", "training.rounds"])
def test_what_has_no_path_is_no_assignment(assignment):
    with pytest.raises(ConfigError) as caught:
        read_config("vae_digits", [assignment])
    [line] = caught.value.problems
    assert line == f"--set {assignment}: expected PATH=VALUE, such as algorithm.adversary.steps=2"


def test_adaptive_contrast_is_refused_an_encoder_without_moments():
    with pytest.raises(ConfigError, match="algorithm.encoder.name: given 'noise_input', expected 'noise_basis'"):
        read_config("avb_ac_digits", ["algorithm.encoder={name: noise_input}"])


def test_sections_that_do_not_go_together_are_reported_beside_misspelt_keys():
    assignments = ["data.binarisation=none", "training.logical_workers=3", "scaling.wokers=2", "scaling.workers=2"]
    with pytest.raises(ConfigError) as caught:
        read_config("vae_digits", assignments)
    assert {line.split(":")[0] for line in caught.value.problems} == {
        "algorithm.observation",
        "training.logical_workers",
        "scaling.wokers",
        "scaling.workers",
    }


def test_where_a_run_takes_place_does_not_decide_which_model_comes_out():
    config = read_config("vae_digits")
    elsewhere = ["scaling.cpus_per_worker=2", "tracking.experiment=other", "data.root=/elsewhere"]
    assert read_config("vae_digits", elsewhere).identity() == config.identity()
    assert read_config("vae_digits", ["training.seed=1"]).identity() != config.identity()


OPTIMIZERS = sorted(
    name
    for name in torch.optim.__all__
    if isinstance(getattr(torch.optim, name), type) and issubclass(getattr(torch.optim, name), torch.optim.Optimizer)
)


@pytest.mark.parametrize(
    ("turn", "reason"),
    [
        ({"betas": [1.0, 0.999]}, "betas"), ({"options": {"weight_decay": -1}}, "Invalid weight_decay"),
        ({"options": {"weight_decay": True}}, "weight_decay as a number, given True"),
        ({"options": {"capturable": True}}, "capturable"), ({"options": {"differentiable": True}}, "differentiable"),
        ({"optimizer": "SGD", "options": {"nesterov": True}}, "Nesterov momentum requires a momentum"),
        ({"optimizer": "SGD", "options": {"momentum": -2}}, "Invalid momentum"),
    ],
)  # fmt: skip
def test_what_an_optimizer_would_refuse_is_refused_before_training(turn, reason):
    with pytest.raises(ConfigError, match=reason):
        TurnConfig.parse(turn)


def test_a_configuration_error_travels_between_processes():
    error = pickle.loads(pickle.dumps(ConfigError(["a.b: given 1", "c: given 2"], "mine.yaml")))
    assert str(error) == "mine.yaml: 2 problems\n  a.b: given 1\n  c: given 2"
    assert error.problems == ["a.b: given 1", "c: given 2"]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_an_optimizer_that_is_accepted_trains_any_network(optimizer):
    """Refused at once, or able to take steps on matrices, vectors and scalars; never an error after the launch."""
    try:
        turn = TurnConfig.parse({"optimizer": optimizer})
    except ConfigError:
        return
    network = nn.Sequential(nn.Linear(3, 2), nn.PReLU())
    network.register_parameter("scalar", nn.Parameter(torch.tensor(1.0)))
    built = turn.build(network.parameters())
    before = [p.detach().clone() for p in network.parameters()]
    (network(torch.randn(5, 3)).square().sum() * network.scalar).backward()
    built.step()
    assert not all(torch.equal(p, old) for p, old in zip(network.parameters(), before, strict=True))


@pytest.mark.parametrize("decay", ["none", "linear", "cosine"])
def test_schedules_warm_up_stay_and_decay_to_nothing(decay):
    rounds, schedule = 100, ScheduleConfig(decay=decay, decay_from=0.6, warmup=10)
    factors = [schedule.factor(round_, rounds) for round_ in range(rounds)]
    assert factors[:10] == pytest.approx([(round_ + 1) / 10 for round_ in range(10)])
    assert factors[10:61] == [1.0] * 51
    expected = {
        "none": lambda u: 1.0,
        "linear": lambda u: 1 - u,
        "cosine": lambda u: 0.5 + 0.5 * math.cos(math.pi * u),
    }[decay]
    assert factors[60:] == pytest.approx([expected((round_ - 60) / 40) for round_ in range(60, 100)], abs=1e-6)


def test_a_budget_that_is_asked_for_stands_above_the_files(tmp_path):
    file, base = tmp_path / "likelihood.yaml", LikelihoodConfig(budget="certified")
    file.write_text("budget: standard\nais: {chains: 4}\n")
    assert read_likelihood(base, None, None).budget == "quick"
    assert read_likelihood(base, file, None).budget == "standard"
    assert read_likelihood(base, file, "quick").budget == "quick"
    assert read_likelihood(base, file, "quick").ais.chains == 4


@pytest.mark.parametrize("text", ["1: 2", "ais: {1: 2}"])
def test_a_key_that_is_a_number_is_named_in_a_settings_file(tmp_path, text):
    file = tmp_path / "likelihood.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"\b1\b"):
        read_likelihood(LikelihoodConfig(), file, None)
