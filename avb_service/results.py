"""What the functions of service/ give: values that print as a person reads them, and show themselves in a notebook.

Floor 9. Each has `rows`, plain values as `--json` prints them (docs/json.md).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Console

from avb_service import rows, tables
from avb_service.shown import Listing, Plots, Shown, image

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from avb_service.records import Certificate, Comparison, Estimate, LikelihoodRecord
    from avb_service.tracking.publish import Published


class Leaderboard(Listing):
    """Registered models; those that were scored on the same data together, the best first."""

    def __init__(self, models: Sequence[rows.Row]) -> None:
        super().__init__(tuple(models), tables.leaderboard)


@dataclass(frozen=True, repr=False)
class Plan(Shown):
    """What a round would take on so many workers.

    Attributes:
        title: what is trained.
        workers: a row for each number of workers.
        enough: how many pay; more save less than a tenth of a round each.
        averaged_bytes: of the gradients that are averaged in a round.
    """

    title: str
    workers: tuple[rows.Row, ...]
    enough: int
    averaged_bytes: int

    @property
    def rows(self) -> rows.Row:
        """All of it."""
        return {"workers": list(self.workers), "enough": self.enough, "averaged_bytes": self.averaged_bytes}

    def show(self, console: Console | None = None) -> None:
        """A table, and what it comes to."""
        tables.plan(self.workers, self.title, console)
        most = "; more save less than a tenth of a round each" if self.enough < self.workers[-1]["workers"] else ""
        text = f"{self.enough} of them pay{most}. A core (or GPU) for each is taken for granted."
        tables.line(text, console)


@dataclass(frozen=True, repr=False)
class Trained(Shown):
    """A model that was trained, scored and registered.

    Attributes:
        run: its name.
        published: where it is in the registry, and how it fared against the champion.
    """

    run: str
    published: "Published"

    @property
    def rows(self) -> rows.Row:
        """The run, its model, and all held-out estimates."""
        return rows.published(self.run, self.published)

    def show(self, console: Console | None = None) -> None:
        """In a line."""
        made = self.published
        text = f"{self.run} is {made.uri}, {made.alias}: {made.reason}; see it with `avb ui`"
        tables.line(text, console)


@dataclass(frozen=True, repr=False)
class Searched(Shown):
    """What a search has ended with.

    Attributes:
        name: of the search.
        published: the best model of each method.
        leaderboard: all registered models, in which these are marked.
    """

    name: str
    published: "tuple[Published, ...]"
    leaderboard: Leaderboard

    @property
    def best(self) -> "Published":
        """The best model of all."""
        return next(each for each in self.published if each.alias is not None)

    @property
    def rows(self) -> list[rows.Row]:
        """The leaderboard's."""
        return self.leaderboard.rows

    def show(self, console: Console | None = None) -> None:
        """The leaderboard."""
        self.leaderboard.show(console)


@dataclass(frozen=True, repr=False)
class Evaluation(Shown):
    """Log-likelihoods of data under a model, each with its kind and error bar.

    Attributes:
        model: as it was named.
        data: the data set's name.
        count: how many data were scored.
        record: all that was found.
        subject: the model in words, for plots.
        other_data: that these are not the data that the model was trained on, if so, in a line.
    """

    model: str
    data: str
    count: int
    record: "LikelihoodRecord"
    subject: str
    other_data: str | None = None

    @property
    def estimates(self) -> "tuple[Estimate, ...]":
        """In nats per datum."""
        return self.record.estimates

    @property
    def certificate(self) -> "Certificate | None":
        """Of the annealed estimate, where the budget buys one."""
        return self.record.certificate

    @property
    def rows(self) -> rows.Row:
        """Estimates, certificate, what speaks against an adversary."""
        return rows.evaluation(self.record, self.model, self.data, self.count, self.other_data)

    def show(self, console: Console | None = None) -> None:
        """Tables of these."""
        title = f"{self.model} on {self.count} test data of {self.data}"
        tables.estimates(self.record, title, self.other_data, console)

    def plot(self) -> "Figure":
        """All estimates on one axis, with their errors."""
        from avb_service.report import bounds_plot

        return bounds_plot(self.estimates, self.certificate, self.subject)

    def _repr_html_(self) -> str:
        return super()._repr_html_() + image(self.plot(), ' width="640"')


@dataclass(frozen=True, repr=False)
class Compared(Shown):
    """Which of two models is better, datum by datum on the same held-out data.

    Attributes:
        first: a model.
        second: another.
        comparison: by how much the first is better, nats per datum, with its error.
    """

    first: str
    second: str
    comparison: "Comparison"

    @property
    def rows(self) -> rows.Row:
        """Difference and error."""
        return rows.comparison(self.first, self.second, self.comparison)

    def show(self, console: Console | None = None) -> None:
        """In a line."""
        ahead = "is ahead of" if self.comparison.better else "is not ahead of"
        text = f"{self.first} {ahead} {self.second}: {self.comparison}"
        tables.line(text, console)


@dataclass(frozen=True, repr=False)
class Promoted(Shown):
    """A model that was made champion.

    Attributes:
        model: models:/NAME/VERSION.
        reason: why.
    """

    model: str
    reason: str

    @property
    def rows(self) -> rows.Row:
        """Both."""
        return {"model": self.model, "reason": self.reason}

    def show(self, console: Console | None = None) -> None:
        """In a line."""
        text = f"{self.model} is champion: {self.reason}"
        tables.line(text, console)


@dataclass(frozen=True, repr=False)
class Trials(Shown):
    """What a search has found.

    Attributes:
        search: its name.
        trials: plain values under keys that stay, best first.
        importances: share of the objective's variance that each searched setting explains, by path; NaN where too few
            trials have reached any.
        draw: makes the plots.
    """

    search: str
    trials: tuple[rows.Row, ...]
    importances: Mapping[str, float]
    draw: "Callable[[], dict[str, Figure]]"

    @property
    def rows(self) -> rows.Row:
        """All of it but the plots."""
        shares = [{"setting": path, "share": share} for path, share in self.importances.items()]
        return {"search": self.search, "importances": shares, "trials": list(self.trials)}

    @property
    def plots(self) -> "Plots":
        """How trials went, what each setting did, and what the time was spent on."""
        return Plots(self.draw())

    def show(self, console: Console | None = None) -> None:
        """The trials, and what mattered."""
        tables.trials(self.trials, self.search, console)
        known = {path: share for path, share in self.importances.items() if not math.isnan(share)}
        shares = (f"{path} {share:.0%}" for path, share in sorted(known.items(), key=lambda each: -each[1]))
        if known:
            tables.line(f"What explains the differences: {', '.join(shares)}.", console)

    def _repr_html_(self) -> str:
        return super()._repr_html_() + self.plots._repr_html_()
