"""Domains: what a searched setting may be. Known by the names of Ray Tune, and drawn by Optuna.

Floor 9.
"""

import json
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, model_validator

from avb_service.config import Config

if TYPE_CHECKING:
    from optuna.trial import BaseTrial

FEW = 64  # values between the ends of a range that are tried one by one
Positive = Annotated[float, Field(gt=0)]
Counted = Annotated[int, Field(ge=1)]
Stepped = Field(min_length=3, max_length=3)  # both ends, and a step

OTHERS = {  # names that other tools have for domains, and what is written here
    "choice: [a, b, c]": ("categorical", "suggest_categorical", "values", "grid", "grid_search", "options", "enum"),
    "uniform: [low, high]": ("float", "suggest_float", "suggest_uniform", "real", "range", "bounds", "low", "high",
                             "min", "max", "lower", "upper"),
    "loguniform: [low, high]": ("log_uniform", "suggest_loguniform", "log_uniform_values", "log", "reciprocal"),
    "randint: [low, high], the upper end not among them": ("int", "suggest_int", "int_uniform", "integer"),
    "lograndint: [low, high], the upper end not among them": ("log_int", "int_log"),
    "quniform: [low, high, step]": ("q_uniform", "suggest_discrete_uniform", "discrete_uniform", "step"),
    "qloguniform: [low, high, step]": ("q_log_uniform", "q_log_uniform_values"),
    "a domain with ends, such as uniform: [low, high]": ("normal", "randn", "qrandn", "lognormal", "sample_from"),
}  # fmt: skip


class DomainConfig(Config):
    """What a path may be: one of several values, or a number from a range; exactly one of the fields, `when` aside.

    Attributes:
        choice: the values; any that the setting may have, lists and sections as well.
        uniform: the ends, between which all numbers are alike.
        loguniform: the ends, between which the logarithms of all numbers are alike.
        randint: the ends of whole numbers, the upper not among them.
        lograndint: the same, with logarithms alike.
        quniform: the ends of numbers, and the step of which they are multiples; so are both ends.
        qloguniform: the same, with logarithms alike.
        qrandint: the ends of whole numbers, both among them, and the step of which all are multiples.
        qlograndint: the same, with logarithms alike.
        when: other settings, dotted path to value or to several, that a trial must have for this one to be searched;
            without them it keeps its own value.
    """

    choice: Annotated[tuple[Any, ...], Field(min_length=1)] | None = None
    uniform: tuple[float, float] | None = None
    loguniform: tuple[Positive, Positive] | None = None
    randint: tuple[int, int] | None = None
    lograndint: tuple[Counted, Counted] | None = None
    quniform: Annotated[tuple[float, ...], Stepped] | None = None
    qloguniform: Annotated[tuple[Positive, ...], Stepped] | None = None
    qrandint: Annotated[tuple[int, ...], Stepped] | None = None
    qlograndint: Annotated[tuple[Counted, ...], Stepped] | None = None
    when: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _one(self) -> "DomainConfig":
        kinds = [name for name in type(self).model_fields if name != "when"]
        if sum(getattr(self, name) is not None for name in kinds) != 1:
            raise ValueError(f"exactly one of {', '.join(kinds)}, such as {{choice: [1, 2, 5]}}")
        name, values = self.given()
        if name == "choice":
            if twice := [value for i, value in enumerate(values) if value in values[:i]]:
                raise ValueError(f"each value once; {twice[0]!r} is there twice")
            return self
        if not values[0] < values[1]:
            raise ValueError(f"{name} with the lower end first")
        if len(values) == 3 and values[2] <= 0:
            raise ValueError(f"{name} with a step above 0")
        if len(values) == 3 and any(_exact(end) % _exact(values[2]) for end in values[:2]):
            raise ValueError(f"{name} with ends that are multiples of the step, {values[2]:g}")
        return self

    def given(self) -> tuple[str, tuple[Any, ...]]:
        """The field that is set, and its values, or its ends and their step."""
        return next((name, value) for name, value in self if value is not None and name != "when")

    @property
    def logarithmic(self) -> bool:
        """Whether it is the logarithms that are alike."""
        return "log" in self.given()[0]

    @property
    def finite(self) -> bool:
        """Whether its values can be counted."""
        return self.given()[0] not in ("uniform", "loguniform")

    def endpoints(self) -> tuple[Any, ...]:
        """Every value of a choice; both ends of a range."""
        name, values = self.given()
        if name == "choice":
            return values
        return (values[0], values[1] - 1) if name.endswith("randint") and len(values) == 2 else values[:2]

    def between(self) -> Sequence[int]:
        """The whole numbers between the ends, where they are few."""
        name, values = self.given()
        if not name.endswith("randint"):
            return ()
        step = values[2] if len(values) == 3 else 1
        low, high = self.endpoints()
        inner = range(low + step, high, step)
        return inner if len(inner) <= FEW else ()

    def contains(self, value: Any) -> bool:  # noqa: ANN401  any setting
        """Whether it may be drawn."""
        name, values = self.given()
        if name == "choice":
            return _plain(value) in map(_plain, values)
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        low, high = self.endpoints()
        whole = isinstance(value, int) or "randint" not in name
        return whole and low <= value <= high and (len(values) == 2 or not _exact(value) % _exact(values[2]))

    def drawn(self, trial: "BaseTrial", path: str) -> Any:  # noqa: ANN401  any setting
        """What an Optuna trial has at a path, drawn if it is not yet."""
        name, values = self.given()
        if name == "choice":
            labels = _labels(values)
            return values[labels.index(trial.suggest_categorical(path, labels))]
        low, high = self.endpoints()
        if len(values) == 3:
            step = _exact(values[2])
            steps = trial.suggest_int(path, int(_exact(low) / step), int(_exact(high) / step), log=self.logarithmic)
            return int(step * steps) if "randint" in name else float(step * steps)
        if "randint" in name:
            return trial.suggest_int(path, low, high, log=self.logarithmic)
        return trial.suggest_float(path, low, high, log=self.logarithmic)

    def parameter(self, value: Any) -> Any:  # noqa: ANN401  any setting
        """A value as Optuna has it: a choice by its label, a multiple by how many steps it is."""
        name, values = self.given()
        if name == "choice":
            return _labels(values)[list(map(_plain, values)).index(_plain(value))]
        return int(_exact(value) / _exact(values[2])) if len(values) == 3 else value

    def __str__(self) -> str:
        """For people."""
        name, values = self.given()
        said = f"{name} of {', '.join(map(str, _labels(values)))}"
        if name != "choice":
            said = f"{name} from {values[0]} to {values[1]}" + (f" by {values[2]}" if len(values) == 3 else "")
        return said + (
            f", when {', '.join(f'{key} is {value}' for key, value in self.when.items())}" if self.when else ""
        )


def _exact(value: float) -> Decimal:
    """The number that was written, of which a float is the nearest."""
    return Decimal(repr(value))


def _plain(value: Any) -> Any:  # noqa: ANN401  any setting
    """The same with lists for tuples."""
    return json.loads(json.dumps(value))


def _labels(values: Sequence[Any]) -> list[Any]:
    """Values as Optuna takes them: scalars as they are, lists and sections as text."""
    return [value if isinstance(value, bool | int | float | str) else json.dumps(value) for value in values]


def as_others_say(given: Any) -> str | None:  # noqa: ANN401  whatever the YAML holds
    """How a domain is written here that is written as other tools have it; None where it is not."""
    if isinstance(given, list):
        return (
            f"given a list, expected {{choice: {given}}} to search among these, or a range such as {{uniform: [0, 1]}}"
        )
    if not isinstance(given, Mapping) or given.keys() & (DomainConfig.model_fields.keys() - {"when"}):
        return None
    for ours, theirs in OTHERS.items():
        if known := [key for key in given if str(key).removeprefix("tune.") in theirs]:
            return f"given {', '.join(known)}, as other tools have it, expected {ours}"
    return None
