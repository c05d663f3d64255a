"""Searchers: who says which setting is tried next. Each is a line of the table `SEARCHERS`, and a sampler of Optuna.

Floor 9.
"""

import warnings
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from avb_service.config import Config
from avb_service.kinds import Table, subclass_of
from avb_service.tuning.domains import DomainConfig

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler


class Searcher(Config):
    """A way to look for good settings.

    Attributes:
        name: which one.
    """

    name: str
    learns: ClassVar[bool] = False  # whether what earlier trials have reached decides about later ones

    @abstractmethod
    def sampler(self, seed: int, draw: int) -> "BaseSampler":
        """Draws one setting.

        Args:
            seed: of the search.
            draw: another number for each draw. A sampler with chance of its own takes `draw_seed(seed, draw)`, so that
                a search which goes on draws what an undisturbed one does.
        """

    def objections(self, domains: Mapping[str, DomainConfig]) -> Iterator[str]:
        """Lines `path: why` of domains that it cannot search."""
        yield from ()


class RandomConfig(Searcher):
    """Settings drawn independently of each other, and of what was reached."""

    name: Literal["random"] = "random"

    def sampler(self, seed: int, draw: int) -> "BaseSampler":
        """Of Optuna, the RandomSampler."""
        from optuna.samplers import RandomSampler

        return RandomSampler(draw_seed(seed, draw))


class GridConfig(Searcher):
    """Every combination of values once, in an order of chance; ends when there are no more."""

    name: Literal["grid"] = "grid"

    def sampler(self, seed: int, draw: int) -> "BaseSampler":
        """Of Optuna, the BruteForceSampler, which knows of conditions."""
        from optuna.samplers import BruteForceSampler

        with settled():
            return BruteForceSampler(draw_seed(seed, draw), avoid_premature_stop=True)

    def objections(self, domains: Mapping[str, DomainConfig]) -> Iterator[str]:
        """A range without steps has no end."""
        for path, domain in domains.items():
            if not domain.finite:
                name, (low, high, *_) = domain.given()
                yield (
                    f"{path}: {name} has no values that a grid could go through; give choice: [...], or "
                    f"q{name}: [{low:g}, {high:g}, STEP]"
                )


class TPEConfig(Searcher):
    """Tree-structured Parzen estimator: draws where good settings were denser than others (Bergstra et al. 2011).

    Settings are looked at together, and those still in training count as poor, so that trials side by side differ
    (Optuna's `multivariate`, `group` and `constant_liar`).

    Attributes:
        startup: trials that are drawn at random first.
        candidates: draws of which the most promising is tried.
    """

    name: Literal["tpe"] = "tpe"
    learns: ClassVar[bool] = True
    startup: Annotated[int, Field(ge=1)] = 8
    candidates: Annotated[int, Field(ge=1)] = 24

    def sampler(self, seed: int, draw: int) -> "BaseSampler":
        """Of Optuna, the TPESampler."""
        from optuna.samplers import TPESampler

        with settled():
            return TPESampler(
                n_startup_trials=self.startup,
                n_ei_candidates=self.candidates,
                seed=draw_seed(seed, draw),
                multivariate=True,
                group=True,
                constant_liar=True,
            )


class QMCConfig(Searcher):
    """A quasi-random sequence, which fills the space more evenly than chance (Bergstra & Bengio 2012); ranges only.

    Choices are drawn at random beside it.

    Attributes:
        sequence: Sobol's or Halton's.
    """

    name: Literal["qmc"] = "qmc"
    sequence: Literal["sobol", "halton"] = "sobol"

    def sampler(self, seed: int, draw: int) -> "BaseSampler":
        """Of Optuna, the QMCSampler, which keeps in the study how far the sequence has come."""
        from optuna.samplers import QMCSampler, RandomSampler

        with settled():
            return QMCSampler(
                qmc_type=self.sequence,
                scramble=True,
                seed=seed,
                independent_sampler=RandomSampler(draw_seed(seed, draw)),
                warn_asynchronous_seeding=False,
                warn_independent_sampling=False,
            )


def draw_seed(*parts: int) -> int:
    """A seed of its own for each draw of each search."""
    return int(np.random.SeedSequence(parts).generate_state(1)[0])


@contextmanager
def settled() -> Iterator[None]:
    """What Optuna calls experimental is not told to people who search."""
    from optuna.exceptions import ExperimentalWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        yield


SEARCHERS: Table[type[Searcher]] = Table(
    "searchers",
    {"random": RandomConfig, "grid": GridConfig, "tpe": TPEConfig, "qmc": QMCConfig},
    subclass_of(Searcher),
)
