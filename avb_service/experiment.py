"""One experiment in one process: build, fit, evaluate, draw.

Floor 6. Data-parallel training runs the same class in every worker; where records go is the caller's business.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from avb_service.algorithm import LatentVariableModel
from avb_service.algorithms import TABLE
from avb_service.checkpoint import Checkpoint, CheckpointStore
from avb_service.data.datasets import DataConfig, Dataset, load
from avb_service.data.mixtures import MIXTURES
from avb_service.data.scale import remedy
from avb_service.data.splits import Split
from avb_service.data.stream import Stream, fixed
from avb_service.errors import DataError, DivergenceError, UserError
from avb_service.likelihood import (
    Columns,
    Evaluator,
    Task,
    can_be_diagnosed,
    codes_seen,
    diagnose,
    parzen_of_draws,
    surgery,
)
from avb_service.likelihood.needs import measure
from avb_service.model import build, write_model
from avb_service.provenance import code_version
from avb_service.records import LikelihoodRecord
from avb_service.seeding import derive_seed, reproducible, seeded
from avb_service.settings import ExperimentConfig
from avb_service.training.agreement import together
from avb_service.training.loop import Engine, Report, Source
from avb_service.training.turn import Average
from avb_service.trees import must_match

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# What runs are compared by, on data that are always the same: a lower bound; a figure of the draws where there is none.
OBJECTIVE, OF_DRAWS = "validation/log_likelihood", "validation/parzen"
FIGURE_DATA = 500
CALIBRATION_DATA = 5000
SKIPPED = "avb.checkpoints_skipped"  # tag: what was wrong with them
COVERAGE_DRAWS = 2500

OnReport = Callable[[int, Mapping[str, float]], None]
Heed = Callable[[Callable[[], None]], None]


class Recorder(Protocol):
    """Where a run is recorded; MLflow's `Run` is one."""

    def log_metrics(self, metrics: Mapping[str, float], step: int, tags: Mapping[str, str] | None = None) -> None:
        """Numbers at a round; those that are there already are left. The tags are true of the run from then on."""

    def log_figure(self, name: str, picture: Any, step: int | None = None) -> None:  # noqa: ANN401
        """A PNG at a round; without one, the final picture of that name."""

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """What a table of runs shows of this one."""


class Experiment:
    """A model in training.

    Args:
        config: all settings.
        folder: where checkpoints are kept.
        recorder: where numbers and pictures go; none by default.
        averaging: makes the mean over workers, as `Engine` takes it; none in one process.
        rank: this worker; only rank 0 evaluates, saves and records.
        workers: how many there are.
        device: where to train.

    Raises:
        UserError: data that are missing or do not fit the model.
    """

    def __init__(
        self,
        config: ExperimentConfig,
        folder: Path,
        *,
        recorder: Recorder | None = None,
        averaging: Callable[[Tensor], Average] | None = None,
        rank: int = 0,
        workers: int = 1,
        device: torch.device | str = "cpu",
    ) -> None:
        torch.set_float32_matmul_precision(config.training.matmul_precision)
        reproducible()
        self.config, self.recorder, self.rank, self.device = config, recorder, rank, torch.device(device)
        self.dtype: torch.dtype = getattr(torch, config.training.dtype)
        training = config.training
        with together(self.device):
            self.dataset = load_data(config)
            self.algorithm = build(config, self.dataset.spec).to(self.device, self.dtype)
            source = self._source(self.dataset, config.data, training.seed)
            other = None
            if self.dataset.other is not None and config.data.other is not None:
                seed = derive_seed(training.seed, "other")  # so that the sources are not paired by their order
                other = self._source(self.dataset.other, config.data.other, seed)
        self.engine = Engine(
            self.algorithm, source, training, other=other, averaging=averaging, rank=rank, workers=workers
        )
        self.store = CheckpointStore(folder, best_by=objective_of(config.algorithm.name))
        self.history: dict[str, list[list[float]]] = {}
        self.seconds = 0.0
        self._since = time.perf_counter()

    def fit(self, on_report: OnReport = lambda round_, metrics: None, heed: Heed = lambda save: None) -> None:
        """Train to the end, from the newest checkpoint if there is one.

        Args:
            on_report: called by every worker at every report; only rank 0 has the validation figures.
            heed: called by every worker every few rounds, with a function that saves the state; all call that or none.

        Raises:
            UserError: the folder holds checkpoints of another configuration, or only damaged ones.
            DivergenceError: training left the finite numbers; names the last good state, which is in the store.
        """
        resumed = self.resume(on_report)
        if self.recorder is not None:
            self.recorder.set_tags(self.tags())
        if not resumed:
            self.save()  # so that there is a good state before the first report, too
        self._since = time.perf_counter()

        def report(progress: Report) -> None:
            with together(self.device):
                self._calibrate()
            with together(self.device):
                objective = self._objective()
            with together(self.device):
                metrics = {**progress.terms, **objective}
                metrics = self._report(progress.round, metrics) if self.rank == 0 else metrics
            on_report(progress.round, metrics)
            self._since = time.perf_counter()

        try:
            self.engine.run(report, lambda: heed(self.save))
        except DivergenceError as error:
            round_ = self.engine.round if error.round is None else error.round
            what_to_do = remedy(self.dataset, round_, *self._suspects(error.player, round_))
            raise DivergenceError(f"{error}. {what_to_do}. The last good state is {self.store.newest}") from error

    def save(self) -> None:
        """Write a checkpoint between two reports; all workers call it.

        Raises:
            UserError: it cannot be written.
        """
        self.seconds += time.perf_counter() - self._since
        self._since = time.perf_counter()
        self.engine.pool()
        with together(self.device):
            if self.rank == 0:
                self.store.save(self.engine.round, self._state(), {}, self.config.tree())

    def resume(self, on_report: OnReport = lambda round_, metrics: None) -> bool:
        """Load the newest checkpoint, if there is one, and report it again: who was to hear of it may have missed it.

        Returns:
            Whether there is one.

        Raises:
            UserError: it was made with another configuration; names the differing lines.
        """
        with together(self.device):
            checkpoint = self._matching(self.store.latest())
        if checkpoint is not None:
            self._load(checkpoint)
            if checkpoint.skipped and self.recorder is not None:
                self.recorder.set_tags({SKIPPED: "; ".join(checkpoint.skipped)})
            if checkpoint.metrics:  # else it was made between two reports
                on_report(checkpoint.round, checkpoint.metrics)
        return checkpoint is not None

    def load_best(self) -> int:
        """Load the checkpoint with the best validation likelihood, else the newest, and give its round.

        Raises:
            UserError: there is none, or it was made with another configuration.
        """
        checkpoint = self._matching(self.store.best() or self.store.latest())
        if checkpoint is None:
            raise UserError(f"{self.store.folder} holds no checkpoint; train first")
        self._load(checkpoint)
        return checkpoint.round

    def data(self, split: str, limit: int | None = None) -> tuple[Tensor, Tensor | None]:
        """Data [n, C, H, W] and labels of a split as evaluation sees them: binarised once, always alike."""
        return self._fixed(self.dataset, self.config.data, split, limit)

    def other(self, split: str, limit: int | None = None) -> tuple[Tensor, Tensor | None] | None:
        """The same of the second source; none where there is one source."""
        if self.dataset.other is None or self.config.data.other is None:
            return None
        return self._fixed(self.dataset.other, self.config.data.other, split, limit)

    def assess(self, **options: Any) -> LikelihoodRecord:  # noqa: ANN401
        """Score the model on held-out data by what its configuration's budget buys; without p(x|z), by Parzen windows.

        Args:
            options: `Evaluator`'s.
        """
        likelihood, model = self.config.likelihood, self.engine.model
        basis = {
            "data": self.dataset.name,
            "data_sha256": self.dataset.sha256,
            "split": "test",
            "binarisation": self.config.data.binarisation,
            "seed": str(likelihood.seed),
            "data_scored": str(likelihood.test_data or "all"),
        }
        x, _ = self.data("test", likelihood.test_data)
        evaluator = Evaluator(model, likelihood, training=self.config.training, **options)
        if not isinstance(model, LatentVariableModel):
            train, validation = (self.data(split)[0] for split in ("train", "validation"))
            return LikelihoodRecord(basis, evaluator.parzen(train, validation, x))
        if self.dataset.spec.values == "levels":  # all others have but one
            basis["measure"] = measure(model)
        return evaluator.assess(x, likelihood.budget, basis)

    def draw(self) -> "dict[str, Figure]":
        """All figures that apply to the model."""
        from avb_service.figures import draw  # matplotlib is slow to import, and most processes draw nothing

        x, labels = self.data("validation", FIGURE_DATA)
        history = {name: [(int(round_), value) for round_, value in points] for name, points in self.history.items()}
        other = self.other("validation", FIGURE_DATA)
        return draw(
            self.engine.model,
            x,
            labels,
            history,
            other=None if other is None else other[0],
            subject=self.subject,
            data="validation data",
        )

    def surgery(self) -> dict[str, float]:
        """The mean ELBO of validation data taken apart; nothing without a likelihood, or of a single datum."""
        model, likelihood = self.engine.model, self.config.likelihood
        if not isinstance(model, LatentVariableModel):
            return {}
        x, _ = self.data("validation", likelihood.validation_data)
        if len(x) < 2:
            return {}
        return surgery(model, x, likelihood.elbo_draws, likelihood.seed).metrics("validation")

    def record_figures(self, recorder: Recorder, step: int | None = None) -> None:
        """Draw and record all figures: at a round, or as the final ones."""
        from avb_service.figures import to_png

        for name, figure in self.draw().items():
            recorder.log_figure(name, to_png(figure), step)

    def publish(self, folder: Path, card: str, likelihood: LikelihoodRecord) -> Path:
        """Write the model folder that the registry takes."""
        return write_model(self.engine.model, self.config, card, likelihood, folder, self.engine.round)

    @property
    def subject(self) -> str:
        """The model as it is now, in words, for plots."""
        return self.config.subject(self.engine.round)

    def tags(self) -> dict[str, str]:
        """What a table of runs shows of this one."""
        return {
            "method": self.config.algorithm.name,
            "latent_dim": str(getattr(self.config.algorithm, "latent_dim", "")),
            "data": self.dataset.name,
            "data_sha256": self.dataset.sha256,
            "data_read": self.dataset.description,
            "code": code_version(),
            "parameters": str(sum(p.numel() for p in self.algorithm.parameters())),
            **self._progress(),
        }

    def _progress(self) -> dict[str, str]:
        """How far it is trained, and in which manner it is played: auto until the first round."""
        played = {f"training.{name}": value for name, value in self.engine.manner._asdict().items()}
        return {"rounds": str(self.engine.round), "train_seconds": f"{self.seconds:.1f}", **played}

    def _fixed(self, dataset: Dataset, data: DataConfig, split: str, limit: int | None) -> tuple[Tensor, Tensor | None]:
        chosen: Split = getattr(dataset, split)
        seed = self.config.likelihood.seed
        return fixed(chosen, dataset.spec, data.binarisation, seed, self.device, self.dtype, limit)

    def _source(self, dataset: Dataset, data: DataConfig, seed: int) -> Source:
        training = self.config.training
        return Stream(
            dataset.train,
            dataset.spec,
            binarisation=data.binarisation,
            batch_size=training.batch_size,
            seed=seed,
            device=self.device,
            dtype=self.dtype,
            logical_workers=training.logical_workers,
        ).slice

    def _calibrate(self) -> None:
        """Let the model that is evaluated fit what training does not; the same on all workers."""
        model, training = self.engine.model, self.config.training

        def batches() -> Iterator[Tensor]:
            yield from self.data("train", CALIBRATION_DATA)[0].split(training.batch_size)

        with seeded(training.seed, "calibrate"), torch.no_grad():
            model.calibrate(batches())
        if dist.is_initialized():
            for buffer in model.buffers():
                dist.broadcast(buffer, 0)

    def _report(self, round_: int, metrics: dict[str, float]) -> dict[str, float]:
        """Record and save, in this order: what was recorded twice is dropped, what was missed is lost."""
        metrics = {**metrics, **self._diagnosis(), **self._coverage(), "time/train_seconds": self.seconds}
        for name, value in metrics.items():
            self.history.setdefault(name, []).append([round_, value])
        if self.recorder is not None:
            self.recorder.log_metrics(metrics, round_, self._progress())
            reports = round_ // self.config.training.report_every
            last = round_ == self.config.training.rounds
            if last or reports % self.config.tracking.figures_every == 0:
                self.record_figures(self.recorder, round_)
        self.store.save(round_, self._state(), metrics, self.config.tree())
        return metrics

    def _objective(self) -> dict[str, float]:
        """The validation figure that searches compare by; all workers share the work.

        Raises:
            DivergenceError: it is not finite.
        """
        self.seconds += time.perf_counter() - self._since
        model = self.engine.model
        x, _ = self.data("validation", self.config.likelihood.validation_data)
        try:
            if not isinstance(model, LatentVariableModel):
                return parzen_of_draws(model, x, seed=self.config.likelihood.seed).metrics("validation")
            estimate = Evaluator(model, self.config.likelihood, run=_shared_out).objective(x)
        except UserError as error:  # the data are known to be sound
            raise DivergenceError(f"round {self.engine.round}: {error}") from error
        if not math.isfinite(estimate.value):
            raise DivergenceError(f"round {self.engine.round}: {estimate.name} on validation data is {estimate.value}")
        return {OBJECTIVE: estimate.value, **estimate.metrics("validation")}

    def _suspects(self, refused: str | None, round_: int) -> tuple[list[str], bool]:
        """Whose steps may have been too large, and whether any was taken before one that was refused."""
        first, *_ = players = self.engine.players
        before_all = round_ == 0 and refused == first.name and first.turn.steps == 1
        return [refused] if refused else [player.name for player in players], not before_all

    def _diagnosis(self) -> dict[str, float]:
        """What speaks against the adversary, on validation data; nothing where it cannot be told."""
        model = self.engine.model
        if not can_be_diagnosed(model):
            return {}
        x, _ = self.data("validation", self.config.likelihood.diagnosis_data)
        seen = codes_seen(model, self.engine.round, self.config.training.batch_size)
        return diagnose(model, x, seen, seed=self.config.likelihood.seed).metrics("validation")

    def _coverage(self) -> dict[str, float]:
        """What draws have found of data whose modes are known; nothing for other data."""
        mixture = MIXTURES.get(self.dataset.name)
        if mixture is None:
            return {}
        with seeded(self.config.likelihood.seed, "coverage"), torch.no_grad():
            found = mixture.coverage(self.engine.model.sample(COVERAGE_DRAWS))
        return {"validation/modes_found": float(found.modes), "validation/good_draws": found.good}

    def _matching(self, checkpoint: Checkpoint | None) -> Checkpoint | None:
        """The checkpoint, known to be of this configuration and these data."""
        if checkpoint is None:
            return None
        trained_with = ExperimentConfig.parse(checkpoint.config, str(checkpoint.path)).identity()
        before = {**trained_with, "data_sha256": checkpoint.state["data_sha256"]}
        must_match(
            before,
            {**self.config.identity(), "data_sha256": self.dataset.sha256},
            f"{checkpoint.path} was trained with another configuration",
            "Give the same configuration, or start a new run in another folder",
        )
        return checkpoint

    def _state(self) -> dict[str, Any]:
        return {
            "engine": self.engine.state(),
            "history": self.history,
            "seconds": self.seconds,
            "data_sha256": self.dataset.sha256,
        }

    def _load(self, checkpoint: Checkpoint) -> None:
        self.engine.load(checkpoint.state["engine"])
        self.history, self.seconds = checkpoint.state["history"], checkpoint.state["seconds"]


def _shared_out(task: Task, blocks: Sequence[range]) -> Iterator[tuple[range, Columns]]:
    """Every worker scores its share of the blocks and learns of the others'."""
    scorer = task.make(task.model)
    rank, workers = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    with together(task.x.device):
        scored = [(block, task.score(scorer, block)) for block in blocks[rank::workers]]
    if workers == 1:
        yield from scored
        return
    everybody: list[list[tuple[range, Columns]]] = [[]] * workers
    dist.all_gather_object(everybody, scored)
    for part in everybody:
        yield from part


def objective_of(method: str) -> str:
    """What runs of a method are compared by."""
    return OBJECTIVE if issubclass(TABLE[method], LatentVariableModel) else OF_DRAWS


def load_data(config: ExperimentConfig) -> Dataset:
    """The data, known to fit the model.

    Raises:
        UserError: they are missing or damaged, or have values that the model cannot have produced.
    """
    dataset = load(config.data)
    check_fit(config, dataset)
    return dataset


def check_fit(config: ExperimentConfig, dataset: Dataset) -> None:
    """Make sure that the model can have produced the data, and can learn from so many.

    Raises:
        UserError: it cannot.
    """
    algorithm = config.algorithm
    if objection := algorithm.objection(dataset.spec.values) or algorithm.shortage(len(dataset.train)):
        raise DataError(f"algorithm.{objection}{_why_binary(config.data, dataset)}")
    build(config, dataset.spec)  # what it cannot make of data of that shape


def _why_binary(data: DataConfig, dataset: Dataset) -> str:
    """For data of which nobody has said that they are binary."""
    if dataset.spec.values != "binary" or dataset.spec.levels == 1 or data.binarisation != "none":
        return ""
    white = dataset.spec.levels
    return (
        f". Every pixel of {data.path or dataset.name} is 0 or {white}, so these are binary data, unless they are grey "
        f"pixels that happen to be black and white: --set data.levels={white} says so"
    )
