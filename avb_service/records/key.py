"""What an estimate is known by, and the names that are made of it.

Floor 4. Rules go by keys: which estimate is the model's, which bounds compete, which pairs can be compared. Names
are made here, for people and trackers, and no program takes them apart again.
"""

import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Literal

Kind = Literal["exact", "lower_bound", "upper_bound", "estimate"]
Quantity = Literal["log_likelihood", "simulated", "own_elbo", "parzen_density"]


@dataclass(frozen=True, order=True)
class Key:
    """By which estimator an estimate is, and of what its value depends beside the data.

    Attributes:
        estimator: its name, `iwae_mixture`.
        draws: how many, where the estimator is another one with more of them; else None.
        noise: standard deviation of the observation noise that the caller has named; None under the model's own p(x|z).
    """

    estimator: str
    draws: int | None = None
    noise: float | None = None

    def __str__(self) -> str:
        """For people and trackers: `iwae_mixture_512.noise_0.1`."""
        draws = "" if self.draws is None else f"_{self.draws}"
        return self.estimator + draws + ("" if self.noise is None else f".noise_{self.noise:g}")


def title(key: Key, quantity: Quantity = "log_likelihood") -> str:
    """Names tables and metrics: `log_likelihood.iwae_256`; what is no log-likelihood is not called one."""
    return f"log_likelihood.{key}" if quantity == "log_likelihood" else str(key)


def metric(split: str, key: Key, kind: Kind, quantity: Quantity = "log_likelihood") -> str:
    """A tracker's name of an estimate: `test/log_likelihood.iwae_256.lower_bound`, kind included, but `test/parzen`."""
    name = f"{split}/{title(key, quantity)}"
    return f"{name}.{kind}" if quantity == "log_likelihood" else name


def to_json(keys: Iterable[Key]) -> str:
    """Keys as the registry keeps them beside a model's numbers."""
    return json.dumps([asdict(key) for key in keys])


def from_json(text: str) -> list[Key]:
    """The inverse of `to_json`.

    Raises:
        ValueError: it is something else.
    """
    try:
        return [Key(**fields) for fields in json.loads(text)]
    except TypeError as error:
        raise ValueError(f"no keys of estimates: {error}") from error


def read_older(name: str) -> Key:
    """The key that a name stands for, in what was written before keys were kept; nothing else reads names.

    Raises:
        ValueError: it is the name of no estimate.
    """
    parts = re.fullmatch(r"(?P<estimator>.+?)(_(?P<draws>\d+))?(\.noise_(?P<noise>.+))?", name)
    if parts is None:
        raise ValueError(f"{name!r} names no estimate")
    draws, noise = parts["draws"], parts["noise"]
    return Key(parts["estimator"], None if draws is None else int(draws), None if noise is None else float(noise))


def read_older_metrics(names: Iterable[str]) -> list[Key]:
    """The keys of the lower bounds among metrics of a model that was registered before keys were kept."""
    found = (re.fullmatch(r"test/log_likelihood\.(.+)\.lower_bound", name) for name in names)
    return [read_older(each[1]) for each in found if each is not None]
