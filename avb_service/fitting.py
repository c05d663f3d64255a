"""Fitting a model: the engine with its checkpoints and its reports.

Floor 6. Data-parallel training runs the same class in every worker; where records go is the caller's business.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from avb_service.build import build, load_data, sources
from avb_service.checkpoint import Checkpoint, CheckpointStore
from avb_service.data.datasets import Dataset
from avb_service.data.scale import remedy
from avb_service.errors import DivergenceError, UserError
from avb_service.likelihood import Columns, Task
from avb_service.model import Model
from avb_service.provenance import code_version, same_numbers
from avb_service.recorder import Progress, Recorder, record_plots
from avb_service.report import coverage, diagnosis, objective, objective_of, plots, tags
from avb_service.seeding import reproducible, seeded
from avb_service.settings import ExperimentConfig, check_continues
from avb_service.training.agreement import together
from avb_service.training.loop import Engine, Report, weights_to_evaluate
from avb_service.training.manner import Manner
from avb_service.training.turn import Average
from avb_service.trees import must_match

if TYPE_CHECKING:
    pass

CALIBRATION_DATA = 5000
SKIPPED = "avb.checkpoints_skipped"  # tag: what was wrong with them

OnReport = Callable[[int, Mapping[str, float]], None]
Heed = Callable[[Callable[[], None]], None]


class Fit:
    """A model in training.

    Args:
        config: all settings.
        folder: where checkpoints are kept.
        recorder: where numbers and pictures go; none by default.
        averaging: makes the mean over workers, as `Engine` takes it; none in one process.
        rank: this worker; only rank 0 evaluates, saves and records.
        workers: how many there are.
        device: where to train.
        check: raises where the run has another owner by now; asked before anything of it is written or recorded.

    Raises:
        UserError: data that are missing or do not fit the model.
    """

    def __init__(
        self,
        config: ExperimentConfig,
        folder: str | Path,
        *,
        recorder: Recorder | None = None,
        averaging: Callable[[Tensor], Average] | None = None,
        rank: int = 0,
        workers: int = 1,
        device: torch.device | str = "cpu",
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self.config, self.recorder, self.rank, self.device = config, recorder, rank, torch.device(device)
        with together(self.device):
            self.dataset = load_data(config)
            algorithm = build(config, self.dataset.spec).to(self.device, getattr(torch, config.training.dtype))
            first, other = sources(config, self.dataset, self.device)
        self.engine = Engine(
            algorithm, first, config.training, other=other, averaging=averaging, rank=rank, workers=workers
        )
        self.store = CheckpointStore(folder, best_by=objective_of(config.algorithm.name), check=check)
        self.history: dict[str, list[list[float]]] = {}
        self.seconds = 0.0
        self._since = time.perf_counter()

    @property
    def model(self) -> Model:
        """The model as it is now; it goes on changing with the training."""
        return Model(self.engine.model, self.config, self.engine.round, progress=self.progress, read=self.dataset)

    @property
    def progress(self) -> Progress:
        """How training has gone up to now."""
        return Progress(self.seconds, self.engine.manner, self.history)

    def run(self, on_report: OnReport = lambda round_, metrics: None, heed: Heed = lambda save: None) -> Model:
        """Train to the end, from the newest checkpoint if there is one.

        Args:
            on_report: called by every worker at every report; only rank 0 has the estimates on validation data.
            heed: called by every worker every few rounds, with a function that saves the state; all call that or none.

        Returns:
            The model as training has left it; `best_model` gives that of the best report.

        Raises:
            UserError: the folder holds checkpoints of another configuration, or only damaged ones.
            DivergenceError: training left the finite numbers; names the last good state, which is in the store.
        """
        resumed = self.resume(on_report)
        if self.recorder is not None:
            self.recorder.set_tags(tags(self.model))
        if not resumed:
            with together(self.device):
                self._fit_before_training()
            self.save()  # so that there is a good state before the first report, too
        self._since = time.perf_counter()

        def report(progress: Report) -> None:
            with together(self.device):
                self._fit_after_training()
            with together(self.device):
                metrics = {**progress.terms, **self._objective()}
            with together(self.device):
                metrics = self._report(progress.round, metrics) if self.rank == 0 else metrics
            on_report(progress.round, metrics)
            self._since = time.perf_counter()

        try:
            with reproducible(self.config.training.matmul_precision):
                self.engine.run(report, lambda: heed(self.save))
        except DivergenceError as error:
            round_ = self.engine.round if error.round is None else error.round
            what_to_do = remedy(self.dataset, round_, *self._suspects(error.player, round_))
            raise DivergenceError(f"{error}. {what_to_do}. The last good state is {self.store.newest}") from error
        return self.model

    def save(self) -> None:
        """Write a checkpoint between two reports; all workers call it.

        Raises:
            UserError: it cannot be written.
        """
        self._count_time()
        self.engine.pool()
        with together(self.device):
            if self.rank == 0:
                self.store.save(self.engine.round, self._state(), {}, self.config.tree())

    def resume(self, on_report: OnReport = lambda round_, metrics: None) -> bool:
        """Load the newest checkpoint, if there is one, and report it again: who was to hear of it may have missed it.

        Returns:
            Whether there is one.

        Raises:
            UserError: it was made with another configuration, of which it names the differing lines, or by code that
                computes something else.
        """
        with together(self.device):
            checkpoint = self.store.latest()
            if checkpoint is not None:
                _check_same(checkpoint, self.config, self.dataset)
                _check_code(checkpoint, self.config.packages())
        if checkpoint is None:
            return False
        self.engine.load(checkpoint.state["engine"])
        self.history, self.seconds = checkpoint.state["history"], checkpoint.state["seconds"]
        if checkpoint.skipped and self.recorder is not None:
            self.recorder.set_tags({SKIPPED: "; ".join(checkpoint.skipped)})
        if checkpoint.metrics:  # else it was made between two reports
            on_report(checkpoint.round, checkpoint.metrics)
        return True

    def _fit_before_training(self) -> None:
        """Let the model, and its average, fit what training begins from; the same on all workers."""
        for algorithm in (self.engine.algorithm, self.engine.model):
            with seeded(self.config.training.seed, "prepare"):
                algorithm.fit_before_training(self._batches())

    def _batches(self) -> Iterator[Tensor]:
        """Training data as evaluation sees them."""
        yield from self.model.data("train", CALIBRATION_DATA)[0].split(self.config.training.batch_size)

    def _fit_after_training(self) -> None:
        """Let the model that is evaluated fit what training does not; the same on all workers."""
        model = self.model
        with seeded(self.config.training.seed, "calibrate"), torch.no_grad():
            model.algorithm.fit_after_training(self._batches())
        if dist.is_initialized():
            for buffer in model.algorithm.buffers():
                dist.broadcast(buffer, 0)

    def _objective(self) -> dict[str, float]:
        """What searches compare by; all workers share the work.

        Raises:
            DivergenceError: it is not finite.
        """
        self._count_time()
        try:
            return objective(self.model, _shared_out)
        except UserError as error:  # the data are known to be sound
            raise DivergenceError(f"round {self.engine.round}: {error}") from error

    def _report(self, round_: int, metrics: dict[str, float]) -> dict[str, float]:
        """Record and save, in this order: what was recorded twice is dropped, what was missed is lost."""
        self.store.check()
        model, config = self.model, self.config
        metrics = {**metrics, **diagnosis(model), **coverage(model), "time/train_seconds": self.seconds}
        for name, value in metrics.items():
            self.history.setdefault(name, []).append([round_, value])
        if self.recorder is not None:
            self.recorder.log_metrics(metrics, round_, self.progress.tags(round_))
            reports, last = round_ // config.training.report_every, round_ == config.training.rounds
            if last or reports % config.tracking.plots_every == 0:
                record_plots(self.recorder, plots(model), round_)
        self.store.save(round_, self._state(), metrics, config.tree())
        return metrics

    def _suspects(self, refused: str | None, round_: int) -> tuple[list[str], bool]:
        """Whose steps may have been too large, and whether any was taken before one that was refused."""
        first, *_ = players = self.engine.players
        before_all = round_ == 0 and refused == first.name and first.turn.steps == 1
        return [refused] if refused else [player.name for player in players], not before_all

    def _count_time(self) -> None:
        """Training time up to now; what comes until training goes on is not counted."""
        now = time.perf_counter()
        self.seconds, self._since = self.seconds + now - self._since, now

    def _state(self) -> dict[str, Any]:
        return {
            "engine": self.engine.state(),
            "history": self.history,
            "seconds": self.seconds,
            "data_sha256": self.dataset.sha256,
            "code": code_version(self.config.packages()),
        }


def best_model(config: ExperimentConfig, folder: str | Path, dataset: Dataset | None = None) -> Model:
    """The model of the checkpoint that is best on validation data, else of the newest; on the CPU, with its data.

    Args:
        config: which it was trained with.
        folder: of its checkpoints.
        dataset: its data, where they have been read.

    Raises:
        UserError: there is none, or it was made with another configuration.
    """
    store = CheckpointStore(folder, best_by=objective_of(config.algorithm.name))
    dataset = dataset or load_data(config)
    checkpoint = store.best() or store.latest()
    if checkpoint is None:
        raise UserError(f"{store.folder} holds no checkpoint; train first")
    _check_same(checkpoint, config, dataset)
    engine, training = checkpoint.state["engine"], config.training
    algorithm = build(config, dataset.spec).to(getattr(torch, training.dtype)).eval()
    algorithm.load_state_dict(weights_to_evaluate(engine))
    manner = Manner(**engine["manner"]) if "manner" in engine else Manner(training.capture, training.precision)
    progress = Progress(checkpoint.state["seconds"], manner, checkpoint.state["history"])
    return Model(algorithm, config, checkpoint.round, progress=progress, read=dataset)


def _check_same(checkpoint: Checkpoint, config: ExperimentConfig, dataset: Dataset) -> None:
    """Make sure that a checkpoint is of this configuration and these data.

    Raises:
        UserError: it is not; names the differing lines.
    """
    claim = f"{checkpoint.path} was trained with another configuration"
    remedy = "Give the same configuration, or start a new run in another folder"
    check_continues(ExperimentConfig.parse(checkpoint.config, str(checkpoint.path)), config, claim, remedy)
    must_match({"data_sha256": checkpoint.state["data_sha256"]}, {"data_sha256": dataset.sha256}, claim, remedy)


def _check_code(checkpoint: Checkpoint, packages: Mapping[str, str]) -> None:
    """Make sure that training goes on as it was begun. Of checkpoints of earlier versions nobody can tell.

    Raises:
        UserError: this code computes something else.
    """
    before, now = checkpoint.state.get("code"), code_version(packages)
    if before is not None and same_numbers(before, now) is False:
        raise UserError(
            f"{checkpoint.path} was trained by code that computes something else: {before}, and this is {now}. Go on "
            "with the version that it was begun with, or start a new run in another folder"
        )


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
