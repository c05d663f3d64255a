"""One experiment in one process: build, fit, evaluate, draw, publish; and a published model, loaded.

Floor 6. Data-parallel training runs the same class in every worker; where records go is the caller's business.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol, Union

import torch
from pydantic import Field
from torch import Tensor, nn

from avb_service.algorithm import Algorithm, AlgorithmConfig, DataSpec
from avb_service.algorithms import TABLE
from avb_service.checkpoint import CheckpointStore, ModelFolder
from avb_service.config import Config, Tree, difference, override, parse_overrides, read_yaml
from avb_service.data.datasets import DataConfig, Dataset, Split, load
from avb_service.data.stream import Stream, fixed
from avb_service.engine import Engine, Report, TrainingConfig
from avb_service.errors import DataError, DivergenceError, UserError
from avb_service.likelihood import Estimate, LikelihoodConfig, evaluate, iwae, latent_variable_model
from avb_service.seeding import seeded

OBJECTIVE = "validation/log_likelihood"  # what runs are compared by: a lower bound, on data that are always the same
FIGURE_DATA = 500

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    AlgorithmSection = AlgorithmConfig
else:
    AlgorithmSection = Annotated[Union[tuple(method.Config for method in TABLE.values())], Field(discriminator="name")]  # noqa: UP007


class TrackingConfig(Config):
    """Under which names the run is recorded, and how often it is drawn.

    Attributes:
        experiment: MLflow's experiment.
        model: name in the registry.
        figures_every: reports between two sets of figures; the last report is always drawn.
    """

    experiment: Annotated[str, Field(min_length=1)] = "avb"
    model: Annotated[str, Field(pattern=r"^[^/:.%\"']+$")] = "avb"
    figures_every: Annotated[int, Field(ge=1)] = 4


class ScalingConfig(Config):
    """How many data-parallel workers train one model, and what each of them gets.

    Attributes:
        workers: processes; must divide training.logical_workers.
        cpus_per_worker: cores of each, which torch uses as threads.
        gpus_per_worker: GPUs of each; 0 trains on CPUs.
        max_failures: how many times workers that died are replaced; training goes on from the last checkpoint.
    """

    workers: Annotated[int, Field(ge=1)] = 1
    cpus_per_worker: Annotated[float, Field(gt=0)] = 1
    gpus_per_worker: Annotated[float, Field(ge=0)] = 0
    max_failures: Annotated[int, Field(ge=0)] = 2


class ExperimentConfig(Config):
    """Everything that a run depends on."""

    algorithm: AlgorithmSection
    data: DataConfig
    training: TrainingConfig = TrainingConfig()
    likelihood: LikelihoodConfig = LikelihoodConfig()
    tracking: TrackingConfig = TrackingConfig()
    scaling: ScalingConfig = ScalingConfig()

    def problems(self) -> Iterator[str]:
        """Sections that are sound by themselves and do not go together."""
        yield from super().problems()
        values = self.data.values
        if values is not None and (objection := self.algorithm.objection(values)):
            yield f"algorithm.{objection}"
        if self.training.logical_workers % self.scaling.workers:
            yield (
                f"scaling.workers: {self.scaling.workers} do not divide training.logical_workers "
                f"{self.training.logical_workers}; each worker plays an equal share of the logical ones"
            )

    def anchored(self) -> "ExperimentConfig":
        """The same with absolute paths to the data: workers run in directories of their own."""
        path = self.data.path and str(Path(self.data.path).expanduser().absolute())
        data = self.data.model_copy(update={"root": str(self.data.folder), "path": path})
        return self.model_copy(update={"data": data})

    def identity(self) -> Tree:
        """The part that decides which model comes out: not where it runs, nor under which name."""
        tree = self.tree()
        kept = {key: tree[key] for key in ("algorithm", "data", "training", "likelihood")}
        return override(kept, "data.root", None)


def preset_names() -> list[str]:
    """The presets that come with the package."""
    folder = resources.files("avb_service") / "presets"
    return sorted(file.name.removesuffix(".yaml") for file in folder.iterdir() if file.name.endswith(".yaml"))


def read_preset(source: str | Path) -> Tree:
    """The tree of a preset or of a YAML file.

    Raises:
        UserError: neither; names what there is.
    """
    if str(source) in preset_names():
        with resources.as_file(resources.files("avb_service") / "presets" / f"{source}.yaml") as path:
            return read_yaml(path)
    if not Path(source).is_file():
        raise UserError(f"{source}: neither a file nor a preset; presets are {', '.join(preset_names())}")
    return read_yaml(Path(source))


def read_config(source: str | Path, assignments: list[str] | None = None) -> ExperimentConfig:
    """A preset or file with `--set` assignments on top.

    Raises:
        UserError: the file cannot be read, or the configuration cannot be run.
    """
    tree = read_preset(source)
    for path, value in parse_overrides(assignments or []).items():
        tree = override(tree, path, value)
    return ExperimentConfig.parse(tree, str(source))


class Recorder(Protocol):
    """Where a run is recorded; MLflow's `Run` is one."""

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Numbers at a round."""

    def log_figure(self, name: str, picture: Any, step: int | None = None) -> None:  # noqa: ANN401
        """A PNG at a round; without one, the final picture of that name."""


class Experiment:
    """A model in training.

    Args:
        config: all settings.
        folder: where checkpoints are kept.
        recorder: where numbers and pictures go; none by default.
        wrap: makes a turn data-parallel; none in one process.
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
        wrap: Callable[[nn.Module], nn.Module] | None = None,
        rank: int = 0,
        workers: int = 1,
        device: torch.device | str = "cpu",
    ) -> None:
        torch.set_float32_matmul_precision(config.training.matmul_precision)
        self.config, self.recorder, self.rank, self.device = config, recorder, rank, torch.device(device)
        self.dtype: torch.dtype = getattr(torch, config.training.dtype)
        self.dataset = load_data(config)
        self.algorithm = build(config, self.dataset.spec).to(self.device, self.dtype)
        training = config.training
        stream = Stream(
            self.dataset.train, self.dataset.spec, binarisation=config.data.binarisation,
            batch_size=training.batch_size, seed=training.seed, device=self.device, dtype=self.dtype,
            logical_workers=training.logical_workers,
        )  # fmt: skip
        self.engine = Engine(self.algorithm, stream.slice, training, wrap=wrap, rank=rank, workers=workers)
        self.store = CheckpointStore(folder, best_by=OBJECTIVE)
        self.history: dict[str, list[list[float]]] = {}
        self.seconds = 0.0
        self._since = time.perf_counter()

    def fit(self, on_report: Callable[[int, Mapping[str, float]], None] = lambda round_, metrics: None) -> None:
        """Train to the end, from the newest checkpoint if there is one.

        Args:
            on_report: called by every worker at every report; only rank 0 has the validation figures.

        Raises:
            UserError: the folder holds checkpoints of another configuration, or only damaged ones.
            DivergenceError: training left the finite numbers; the last good state is in the store.
        """
        self.resume()
        self._since = time.perf_counter()

        def report(progress: Report) -> None:
            metrics = self._report(progress) if self.rank == 0 else dict(progress.terms)
            on_report(progress.round, metrics)
            self._since = time.perf_counter()

        self.engine.run(report)

    def resume(self) -> None:
        """Load the newest checkpoint, if there is one.

        Raises:
            UserError: it was made with another configuration; names the differing lines.
        """
        checkpoint = self.store.latest()
        if checkpoint is None:
            return
        trained_with = ExperimentConfig.parse(checkpoint.config, str(checkpoint.path)).identity()
        if lines := difference(trained_with, self.config.identity()):
            raise UserError(
                "\n  ".join([f"{checkpoint.path} was trained with another configuration; differing:", *lines])
                + "\nGive the same configuration, or start a new run in another folder"
            )
        self._load(checkpoint.state)

    def load_best(self) -> int:
        """Load the checkpoint with the best validation likelihood, and give its round.

        Raises:
            UserError: there is none.
        """
        checkpoint = self.store.best() or self.store.latest()
        if checkpoint is None:
            raise UserError(f"{self.store.folder} holds no checkpoint; train first")
        self._load(checkpoint.state)
        return checkpoint.round

    def data(self, split: str, limit: int | None = None) -> tuple[Tensor, Tensor | None]:
        """Data [n, C, H, W] and labels of a split as evaluation sees them: binarised once, always alike."""
        chosen: Split = getattr(self.dataset, split)
        binarisation, seed = self.config.data.binarisation, self.config.likelihood.seed
        return fixed(chosen, self.dataset.spec, binarisation, seed, self.device, self.dtype, limit)

    def evaluate(self, split: str = "test") -> list[Estimate]:
        """All estimates that apply to the model, the one that runs are compared by first."""
        limit = self.config.likelihood.test_data if split == "test" else self.config.likelihood.validation_data
        return evaluate(self.engine.model, self.data(split, limit)[0], self.config.likelihood)

    def draw(self) -> "dict[str, Figure]":
        """All figures that apply to the model."""
        from avb_service.figures import draw  # matplotlib is slow to import, and most processes draw nothing

        x, labels = self.data("validation", FIGURE_DATA)
        history = {name: [(int(round_), value) for round_, value in points] for name, points in self.history.items()}
        return draw(self.engine.model, x, labels, history)

    def record_figures(self, recorder: Recorder, step: int | None = None) -> None:
        """Draw and record all figures: at a round, or as the final ones."""
        from avb_service.figures import to_png

        for name, figure in self.draw().items():
            recorder.log_figure(name, to_png(figure), step)

    def publish(self, folder: Path, card: str) -> Path:
        """Write the model folder that the registry takes."""
        return ModelFolder(self.engine.model.state_dict(), published(self.config, self.dataset.spec), card).write(
            folder, replace=True
        )

    def tags(self) -> dict[str, str]:
        """What a table of runs shows of this one."""
        return {
            "method": self.config.algorithm.name,
            "latent_dim": str(getattr(self.config.algorithm, "latent_dim", "")),
            "data": self.dataset.name,
            "data_sha256": self.dataset.sha256,
            "parameters": str(sum(p.numel() for p in self.algorithm.parameters())),
            "rounds": str(self.engine.round),
            "train_seconds": f"{self.seconds:.1f}",
        }

    def _report(self, progress: Report) -> dict[str, float]:
        self.seconds += time.perf_counter() - self._since
        objective = self._objective()
        metrics = {**progress.terms, **objective, "time/train_seconds": self.seconds}
        for name, value in metrics.items():
            self.history.setdefault(name, []).append([progress.round, value])
        self.store.save(progress.round, self._state(), metrics, self.config.tree())
        if self.recorder is not None:
            self.recorder.log_metrics(metrics, progress.round)
            reports = progress.round // self.config.training.report_every
            last = progress.round == self.config.training.rounds
            if last or reports % self.config.tracking.figures_every == 0:
                self.record_figures(self.recorder, progress.round)
        return metrics

    def _objective(self) -> dict[str, float]:
        """The validation figure that searches compare by.

        Raises:
            DivergenceError: it is not finite.
        """
        x, _ = self.data("validation", self.config.likelihood.validation_data)
        estimate = iwae(latent_variable_model(self.engine.model), x, self.config.likelihood)
        if not math.isfinite(estimate.value):
            raise DivergenceError(f"round {self.engine.round}: {estimate.name} on validation data is {estimate.value}")
        return {OBJECTIVE: estimate.value, **estimate.metrics("validation")}

    def _state(self) -> dict[str, Any]:
        return {"engine": self.engine.state(), "history": self.history, "seconds": self.seconds}

    def _load(self, state: Mapping[str, Any]) -> None:
        self.engine.load(state["engine"])
        self.history, self.seconds = state["history"], state["seconds"]


def load_data(config: ExperimentConfig) -> Dataset:
    """The data, known to fit the model.

    Raises:
        UserError: they are missing or damaged, or have values that the model cannot have produced.
    """
    dataset = load(config.data)
    if objection := config.algorithm.objection(dataset.spec.values):
        raise DataError(f"algorithm.{objection}")
    return dataset


def build(config: ExperimentConfig, spec: DataSpec) -> Algorithm:
    """The method's class, initialised from the seed."""
    method = TABLE[config.algorithm.name]
    with seeded(config.training.seed, "initialisation"):
        return method(config.algorithm, spec)


def published(config: ExperimentConfig, spec: DataSpec) -> Tree:
    """What a model folder's config.yaml says: the configuration, and what a datum is."""
    return {**config.tree(), "spec": {"shape": list(spec.shape), "values": spec.values, "levels": spec.levels}}


@dataclass(frozen=True)
class LoadedModel:
    """A published model.

    Attributes:
        algorithm: the method with its trained weights, for all that is not below.
        config: the configuration that it was trained with.
        card: what its makers say of it, Markdown.
    """

    algorithm: Algorithm
    config: ExperimentConfig
    card: str

    def data(self, split: str, limit: int | None = None, root: str | None = None) -> tuple[Tensor, Tensor | None]:
        """Data [n, C, H, W] and labels of a split, as the model was evaluated on them.

        Args:
            split: train, validation or test.
            limit: only so many; as configured where not given.
            root: folder of the data here.

        Raises:
            UserError: the data are missing or damaged.
        """
        config = self.config.data.model_copy(update={"root": root})
        dataset = load(config)
        seed, limit = self.config.likelihood.seed, limit or self.config.likelihood.test_data
        return fixed(getattr(dataset, split), dataset.spec, config.binarisation, seed, limit=limit)

    def sample(self, n: int, seed: int = 0) -> Tensor:
        """N draws from the model, [n, C, H, W]."""
        with seeded(seed, "sample"), torch.no_grad():
            return self.algorithm.sample(n)

    def encode(self, x: Tensor, seed: int = 0) -> Tensor:
        """One draw z ~ q(z|x) for each datum, [B, D].

        Raises:
            UserError: the method has no encoder, or the data do not fit.
        """
        with seeded(seed, "encode"), torch.no_grad():
            return latent_variable_model(self.algorithm).encode(self._check(x))[0]

    def reconstruct(self, x: Tensor, seed: int = 0) -> Tensor:
        """E[x'|z], z ~ q(z|x), [B, C, H, W].

        Raises:
            UserError: as for `encode`.
        """
        with seeded(seed, "encode"), torch.no_grad():
            return latent_variable_model(self.algorithm).reconstruct(self._check(x))

    def log_likelihood(self, x: Tensor) -> list[Estimate]:
        """All estimates of log p(x) that apply, in nats per datum, each with its kind and error bar.

        Raises:
            UserError: the method defines no p(x|z), or the data do not fit.
        """
        return evaluate(self.algorithm, self._check(x), self.config.likelihood)

    def _check(self, x: Tensor) -> Tensor:
        spec = self.algorithm.spec
        if x.dim() != 4 or tuple(x.shape[1:]) != tuple(spec.shape):
            raise DataError(f"data of shape {list(x.shape)}, expected [B, {', '.join(map(str, spec.shape))}]")
        x = x.to(next(self.algorithm.parameters()))
        allowed = {"binary": (x == 0) | (x == 1), "levels": (x >= 0) & (x <= 1), "real": x.isfinite()}[spec.values]
        if not allowed.all():
            index = tuple((~allowed).nonzero()[0].tolist())
            expected = {"binary": "0 or 1 (the model was trained on binarised data)", "levels": "numbers in [0, 1]",
                        "real": "finite numbers"}[spec.values]
            raise DataError(f"datum {index[0]} holds {x[index].item():g} at {list(index[1:])}, expected {expected}")
        return x


def load_model(folder: Path) -> LoadedModel:
    """Load a model folder, verified, on the CPU.

    Raises:
        UserError: it is damaged, was tampered with, or was written by another version of the package.
    """
    published_model = ModelFolder.read(folder)
    tree = dict(published_model.config)
    given = tree.pop("spec")
    shape = tuple(given["shape"])
    spec = DataSpec(shape, given["values"], given["levels"], torch.zeros(shape))
    config = ExperimentConfig.parse(tree, str(folder / "config.yaml"))
    algorithm = build(config, spec).to(getattr(torch, config.training.dtype))
    try:
        algorithm.load_state_dict(published_model.weights)
    except RuntimeError as error:
        raise DataError(f"the weights in {folder} do not fit its configuration: {error}") from error
    return LoadedModel(algorithm.eval(), config, published_model.card)

