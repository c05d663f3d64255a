"""A trained model: what can be done with it, whether it comes from a checkpoint, a model folder or the registry.

Floor 6.
"""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from avb_service.abilities import encoding_model
from avb_service.algorithm import Algorithm, LatentVariableModel
from avb_service.build import build
from avb_service.data.datasets import DataConfig, Dataset, load
from avb_service.data.files import Levels
from avb_service.data.inputs import Given, refuse_first, seen
from avb_service.data.stream import fixed
from avb_service.discretised import Grid
from avb_service.distributions import DataSpec
from avb_service.errors import DataError, UserError
from avb_service.folder import ModelFolder
from avb_service.kinds import check_packages
from avb_service.likelihood import Budget, Evaluator, NoisyModel
from avb_service.likelihood.needs import on_a_grid
from avb_service.recorder import Progress
from avb_service.records import LIKELIHOOD, Estimate, LikelihoodRecord
from avb_service.seeding import seeded
from avb_service.settings import ExperimentConfig

EXPECTED = {
    "binary": "0 or 1 (the model was trained on binary data)",
    "levels": "numbers in [0, 1], or pixels as uint8",
    "real": "finite numbers",
}


@dataclass(frozen=True)
class Model:
    """A trained model, a value: what is done with it leaves it as it is.

    Data may be tensors, arrays, lists or tables, of all the shapes and types that `data.inputs.seen` tells of; what
    comes back are tensors.

    Attributes:
        algorithm: the method with its trained weights, for all that is not below.
        config: the configuration that it was trained with.
        round: of training, that the weights are of; None where it was written without.
        card: what its makers say of it, Markdown; empty until it is published.
        likelihood: what was found out about its held-out likelihood; None until it is published.
        progress: of its training; None once it is published.
        read: its data, where they have been read; `with_data` reads them.
    """

    algorithm: Algorithm
    config: ExperimentConfig
    round: int | None = None
    card: str = ""
    likelihood: LikelihoodRecord | None = None
    progress: Progress | None = None
    read: Dataset | None = field(default=None, repr=False)

    @classmethod
    def of_folder(cls, folder: Path) -> Self:
        """A published model, verified, on the CPU.

        Args:
            folder: its own, also as MLflow downloads it.

        Raises:
            UserError: it is damaged, was tampered with, or was written by another version of the package.
        """
        written = ModelFolder.read(folder)
        tree = dict(written.config)
        given, round_ = tree.pop("spec"), tree.pop("round")
        check_packages(tree.pop("packages", {}), f"the model in {folder}")
        shape = tuple(given["shape"])
        config = ExperimentConfig.parse(tree, str(folder / "config.yaml"))
        algorithm = build(config, DataSpec(shape, given["values"], given["levels"], torch.zeros(shape)))
        try:
            algorithm.load_state_dict(written.weights)
        except RuntimeError as error:
            raise DataError(f"the weights in {folder} do not fit its configuration: {error}") from error
        record = LikelihoodRecord.from_json(written.more[LIKELIHOOD]) if LIKELIHOOD in written.more else None
        return cls(algorithm.to(getattr(torch, config.training.dtype)).eval(), config, round_, written.card, record)

    def write(self, folder: Path) -> Path:
        """Write the model folder that the registry takes: weights, card, likelihoods, and the configuration.

        With the configuration stands what else makes the model: what a datum is, and the round that the weights are of.

        Raises:
            UserError: it cannot be written.
        """
        spec = self.algorithm.spec
        datum = {"shape": list(spec.shape), "values": spec.values, "levels": spec.levels}
        tree = {**self.config.tree(), "spec": datum, "round": self.round}
        if packages := self.config.packages():
            tree["packages"] = packages
        more = {} if self.likelihood is None else {LIKELIHOOD: self.likelihood.to_json()}
        return ModelFolder(self.algorithm.state_dict(), tree, self.card, more).write(folder, replace=True)

    @property
    def subject(self) -> str:
        """The model in words, for plots: its method, of which data, how many latents, after how many rounds."""
        return self.config.subject(self.round)

    @property
    def record(self) -> LikelihoodRecord:
        """What was found out about its held-out likelihood.

        Raises:
            UserError: nothing was.
        """
        if self.likelihood is None:
            raise UserError(f"{self.subject}, carries no held-out likelihoods; score it before it is published")
        return self.likelihood

    def dataset(self, root: str | None = None) -> Dataset:
        """The data set of the model's configuration, as it is here.

        Args:
            root: folder of the data here; the user's own file or folder is looked for in it, too, where it has moved.

        Raises:
            UserError: the data are missing or damaged.
        """
        if root is None and self.read is not None:
            return self.read
        here, path = {"root": root, "levels": self._levels}, self.config.data.path
        if root is not None and path is not None and not Path(path).expanduser().exists():
            here["path"] = str(Path(root) / Path(path).name)
        return load(self.config.data.model_copy(update=here))

    def with_data(self, root: str | None = None) -> "Model":
        """The same with its data read, which all that is asked of it goes by then.

        Raises:
            UserError: as for `dataset`.
        """
        return dataclasses.replace(self, read=self.dataset(root))

    def data(self, split: str, limit: int | None = None, root: str | None = None) -> tuple[Tensor, Tensor | None]:
        """Data [n, C, H, W] and labels of a split as evaluation sees them: binarised once, always alike.

        Args:
            split: train, validation or test.
            limit: only so many; of the test data as many as configured where not given.
            root: folder of the data here.

        Raises:
            UserError: as for `dataset`.
        """
        if split == "test":
            limit = limit or self.config.likelihood.test_data
        return self._fixed(self.dataset(root), self.config.data, split, limit)

    def other(self, split: str, limit: int | None = None) -> tuple[Tensor, Tensor | None] | None:
        """The same of the second source; None where there is one source."""
        dataset, config = self.dataset().other, self.config.data.other
        return None if dataset is None or config is None else self._fixed(dataset, config, split, limit)

    def other_data(self) -> str | None:
        """That its data here are not those that it was trained on and its record is of, if so, in a line."""
        dataset, recorded = self.dataset(), self.likelihood.basis.get("data_sha256") if self.likelihood else None
        if recorded in (None, dataset.sha256):
            return None
        return (
            f"these are other data than the model was trained and first scored on (sha256 {dataset.sha256[:12]} here, "
            f"{recorded[:12]} then): no estimate here is to be held against its record"
        )

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

    def parzen(self, x: Given, **options: Any) -> list[Estimate]:  # noqa: ANN401
        """Parzen windows on draws from the model, and beside them on the training set: of another quantity.

        Args:
            x: data [n, C, H, W].
            options: `Evaluator`'s.

        Raises:
            UserError: the data do not fit, or those that it was trained on are missing here.
        """
        train, validation = (self.data(split)[0] for split in ("train", "validation"))
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
            expected = f"0, 1/{spec.levels}, 2/{spec.levels}, ..., 1, whose probabilities it gives, or pixels as uint8"
        if not allowed.all():
            refuse_first(x, ~allowed, expected)
        return x

    @property
    def _levels(self) -> Levels | None:
        """What whole numbers of the data are; of a model from before this had to be said, what they were to it."""
        config, levels = self.config.data, self.algorithm.spec.levels
        as_read = config.binarisation != "static" and config.image_size is None
        if config.levels is not None or not as_read or levels == 1:  # zeros and ones are known without
            return config.levels
        return levels or "real"

    def _fixed(self, dataset: Dataset, data: DataConfig, split: str, limit: int | None) -> tuple[Tensor, Tensor | None]:
        like, seed = next(self.algorithm.parameters()), self.config.likelihood.seed
        return fixed(getattr(dataset, split), dataset.spec, data.binarisation, seed, like.device, like.dtype, limit)
