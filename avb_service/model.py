"""A published model: its folder, and what can be done with it once it is loaded.

Floor 6.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from avb_service.algorithm import Algorithm, DataSpec, DecodingModel, EncodingModel, LatentVariableModel
from avb_service.algorithms import TABLE
from avb_service.checkpoint import ModelFolder
from avb_service.data.datasets import Dataset, load
from avb_service.data.files import Levels
from avb_service.data.inputs import Given, refuse_first, seen
from avb_service.data.stream import fixed
from avb_service.distributions import Grid, Values
from avb_service.errors import DataError, UserError
from avb_service.likelihood import Budget, Evaluator, LikelihoodConfig, NoisyModel
from avb_service.likelihood.needs import on_a_grid
from avb_service.records import LIKELIHOOD, Estimate, Kind, LikelihoodRecord
from avb_service.seeding import seeded
from avb_service.settings import ExperimentConfig
from avb_service.trees import Tree

EXPECTED = {
    "binary": "0 or 1 (the model was trained on binary data)",
    "levels": "numbers in [0, 1]",
    "real": "finite numbers",
}


@dataclass(frozen=True)
class LoadedModel:
    """A published model.

    Data may be tensors, arrays, lists or tables, of all the shapes and types that `data.inputs.seen` tells of; what
    comes back are tensors.

    Attributes:
        algorithm: the method with its trained weights, for all that is not below.
        config: the configuration that it was trained with.
        card: what its makers say of it, Markdown.
        likelihood: what was found out about its held-out likelihood; None where it was written without.
        round: of training, that the weights are of; None where it was written without.
    """

    algorithm: Algorithm
    config: ExperimentConfig
    card: str
    likelihood: LikelihoodRecord | None = None
    round: int | None = None

    @property
    def subject(self) -> str:
        """The model in words, for plots: its method, of which data, how many latents, after how many rounds."""
        return self.config.subject(self.round)

    def dataset(self, root: str | None = None) -> Dataset:
        """The data set of the model's configuration, as it is here.

        Args:
            root: folder of the data here; the user's own file or folder is looked for in it, too, where it has moved.

        Raises:
            UserError: the data are missing or damaged.
        """
        here, path = {"root": root, "levels": self._levels}, self.config.data.path
        if root is not None and path is not None and not Path(path).expanduser().exists():
            here["path"] = str(Path(root) / Path(path).name)
        return load(self.config.data.model_copy(update=here))

    def other_data(self, dataset: Dataset) -> str | None:
        """That a data set is not the one that the model was trained on and its record is of, if so, in a line."""
        recorded = self.likelihood.basis.get("data_sha256") if self.likelihood else None
        if recorded in (None, dataset.sha256):
            return None
        return (
            f"these are other data than the model was trained and first scored on (sha256 {dataset.sha256[:12]} here, "
            f"{recorded[:12]} then): no figure here is to be held against its record"
        )

    def data(
        self, split: str, limit: int | None = None, root: str | None = None, dataset: Dataset | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Data [n, C, H, W] and labels of a split, as the model was evaluated on them.

        Args:
            split: train, validation or test.
            limit: only so many; of the test data as many as configured where not given.
            root: folder of the data here.
            dataset: what `dataset(root)` gives, where it is there already.

        Raises:
            UserError: as for `dataset`.
        """
        dataset, binarisation = dataset or self.dataset(root), self.config.data.binarisation
        likelihood = self.config.likelihood
        if split == "test":
            limit = limit or likelihood.test_data
        return fixed(getattr(dataset, split), dataset.spec, binarisation, likelihood.seed, limit=limit)

    @property
    def _levels(self) -> Levels | None:
        """What whole numbers of the data are; of a model from before this had to be said, what they were to it."""
        config, levels = self.config.data, self.algorithm.spec.levels
        as_read = config.binarisation != "static" and config.image_size is None
        if config.levels is not None or not as_read or levels == 1:  # zeros and ones are known without
            return config.levels
        return levels or "real"

    def sample(self, n: int, seed: int = 0, *, means: bool = False) -> Tensor:
        """Draws from the model, [n, C, H, W].

        Args:
            n: how many.
            seed: of the noise.
            means: E[x|z] for the z that the draws of that seed are of, in place of draws from p(x|z).

        Raises:
            UserError: n is no count, or the method defines no p(x|z) that means could be of.
        """
        if not isinstance(n, int) or n < 1:
            raise UserError(f"n: given {n!r}, expected how many draws, 1 or more")
        if means and not isinstance(self.algorithm, LatentVariableModel):
            raise UserError(f"{self.config.algorithm.name} defines no p(x|z) that means could be of; ask for draws")
        with seeded(seed, "sample"), torch.no_grad():
            if means and isinstance(self.algorithm, LatentVariableModel):
                return self.algorithm.decode(self.algorithm.prior().sample((n,)))
            return self.algorithm.sample(n)

    def encode(self, x: Given, seed: int = 0) -> Tensor:
        """One draw z ~ q(z|x) for each datum, [B, D].

        Raises:
            UserError: the method has no encoder, or the data do not fit.
        """
        with seeded(seed, "encode"), torch.no_grad():
            return encoding_model(self.algorithm).encode(self.check(x))[0]

    def reconstruct(self, x: Given, seed: int = 0) -> Tensor:
        """E[x'|z], z ~ q(z|x), [B, C, H, W].

        Raises:
            UserError: as for `encode`.
        """
        with seeded(seed, "encode"), torch.no_grad():
            return encoding_model(self.algorithm).reconstruct(self.check(x))

    def log_likelihood(self, x: Given, budget: Budget = "quick", noise: float | None = None) -> list[Estimate]:
        """Estimates of log p(x) in nats per datum, each with its kind and error bar.

        Args:
            x: data [n, C, H, W].
            budget: quick, standard (with annealing) or certified (with annealing; `evaluator().certify(x)` tells
                whether that can be believed).
            noise: standard deviation of the pixels about what the model makes of a code, for a method that defines no
                p(x|z); the estimates carry it in their names.

        Raises:
            UserError: the method defines no p(x|z) and no noise is given, or the other way round; or the data do not
                fit.
        """
        return self.evaluator(noise=noise).evaluate(x, budget)

    def parzen(self, x: Given, root: str | None = None, **options: Any) -> list[Estimate]:  # noqa: ANN401
        """Parzen windows on draws from the model, and beside them on the training set: of another quantity.

        Args:
            x: data [n, C, H, W].
            root: folder of the data here.
            options: `Evaluator`'s.

        Raises:
            UserError: the data do not fit, or those that it was trained on are missing here.
        """
        train, validation = (self.data(split, root=root)[0] for split in ("train", "validation"))
        return list(self.evaluator(**options).parzen(train, validation, x))

    def evaluator(self, noise: float | None = None, **options: Any) -> Evaluator:  # noqa: ANN401
        """All estimators, one by one; options are `Evaluator`'s. What it is given goes through `check`.

        Raises:
            UserError: a noise is named for a method that has no use for it.
        """
        model = self.algorithm if noise is None else NoisyModel(self.algorithm, noise).eval()
        config = self.config
        return Evaluator(model, config.likelihood, check=self.check, training=config.training, **options)

    def check(self, x: Given) -> Tensor:
        """The data [B, C, H, W] in the model's units and precision, from what `data.inputs.seen` takes.

        Raises:
            DataError: they are of another kind or shape, or have values that the model cannot have produced, of which
                the first is named.
        """
        spec = self.algorithm.spec
        x = seen(x, spec, next(self.algorithm.parameters()))
        allowed = {"binary": (x == 0) | (x == 1), "levels": (x >= 0) & (x <= 1), "real": x.isfinite()}[spec.values]
        expected = EXPECTED[spec.values]
        if spec.values == "levels" and isinstance(self.algorithm, LatentVariableModel) and on_a_grid(self.algorithm):
            allowed = allowed & Grid(spec.levels).check(x)
            expected = f"0, 1/{spec.levels}, 2/{spec.levels}, ..., 1, to which alone p(x|z) gives probabilities"
        if not allowed.all():
            refuse_first(x, ~allowed, expected)
        return x


def encoding_model(model: Algorithm) -> EncodingModel:
    """The model as one that finds codes of data.

    Raises:
        UserError: it does not; names the method.
    """
    if not isinstance(model, EncodingModel):
        able = ", ".join(name for name, method in TABLE.items() if issubclass(method, EncodingModel))
        raise UserError(
            f"{model.config.name} has no encoder, so it neither encodes nor reconstructs data; methods that do: {able}"
        )
    return model


@dataclass(frozen=True)
class Abilities:
    """What a method can do with its default settings.

    Attributes:
        draws: whether they are made of codes from a prior, or translated from a second source.
        encodes: whether data have codes.
        log_likelihood: what log p(x) can be had as.
        needs_noise: whether that is so under an observation noise that the caller names, and not without.
    """

    draws: Literal["prior", "translations"]
    encodes: bool
    log_likelihood: tuple[Kind, ...]
    needs_noise: bool


def abilities(method: type[Algorithm]) -> Abilities:
    """What a method can do."""
    kinds: tuple[Kind, ...] = ()
    if issubclass(method, LatentVariableModel):
        config = method.Config.parse({})
        values = next(each for each in get_args(Values) if config.objection(each) is None)
        vector = DataSpec((1, 1, 8), values, {"binary": 1, "levels": 255, "real": 0}[values], torch.zeros(1, 1, 8))
        with seeded("abilities"):
            kinds = tuple(Evaluator(method(config, vector), LikelihoodConfig()).kinds())
    decodes, scored = issubclass(method, DecodingModel), issubclass(method, LatentVariableModel)
    if decodes and not scored:
        kinds = ("lower_bound",)
    return Abilities(
        "prior" if decodes else "translations", issubclass(method, EncodingModel), kinds, decodes and not scored
    )


def build(config: ExperimentConfig, spec: DataSpec) -> Algorithm:
    """The method's class, initialised from the seed."""
    with seeded(config.training.seed, "initialisation"):
        return TABLE[config.algorithm.name](config.algorithm, spec)


def write_model(
    algorithm: Algorithm, config: ExperimentConfig, card: str, likelihood: LikelihoodRecord, folder: Path, round_: int
) -> Path:
    """Write the model folder that the registry takes: weights, card, likelihoods, and the configuration.

    With the configuration stands what else makes the model: what a datum is, and the round that the weights are of.

    Raises:
        UserError: it cannot be written.
    """
    spec = algorithm.spec
    datum = {"shape": list(spec.shape), "values": spec.values, "levels": spec.levels}
    tree: Tree = {**config.tree(), "spec": datum, "round": round_}
    more = {LIKELIHOOD: likelihood.to_json()}
    return ModelFolder(algorithm.state_dict(), tree, card, more).write(folder, replace=True)


def load_model(folder: Path) -> LoadedModel:
    """Load a model folder, verified, on the CPU.

    Raises:
        UserError: it is damaged, was tampered with, or was written by another version of the package.
    """
    written = ModelFolder.read(folder)
    tree = dict(written.config)
    given, round_ = tree.pop("spec"), tree.pop("round", None)  # older ones have no round
    shape = tuple(given["shape"])
    config = ExperimentConfig.parse(tree, str(folder / "config.yaml"))
    algorithm = build(config, DataSpec(shape, given["values"], given["levels"], torch.zeros(shape)))
    try:
        algorithm.load_state_dict(written.weights)
    except RuntimeError as error:
        raise DataError(f"the weights in {folder} do not fit its configuration: {error}") from error
    record = LikelihoodRecord.from_json(written.more[LIKELIHOOD]) if LIKELIHOOD in written.more else None
    return LoadedModel(algorithm.to(getattr(torch, config.training.dtype)).eval(), config, written.card, record, round_)
