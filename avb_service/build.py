"""From data and configuration to what is trained: an algorithm, and the batches that it learns from.

Floor 6.
"""

from typing import NamedTuple

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from avb_service.algorithm import Algorithm
from avb_service.algorithms import METHODS
from avb_service.data.datasets import DataConfig, Dataset, load
from avb_service.data.stream import Stream
from avb_service.distributions import DataSpec
from avb_service.errors import DataError, UserError
from avb_service.seeding import derive_seed, seeded
from avb_service.settings import ExperimentConfig
from avb_service.training.loop import Source


class Sources(NamedTuple):
    """Batches of the training data; of two sources where the method translates between them."""

    first: Source
    other: Source | None


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


def build(config: ExperimentConfig, spec: DataSpec) -> Algorithm:
    """The method's class, initialised from the seed.

    Raises:
        DataError: it cannot be made for such data.
        UserError: a network of its keeps statistics of a batch.
    """
    with seeded(config.training.seed, "initialisation"):
        algorithm = METHODS[config.algorithm.name](config.algorithm, spec)
    for name, module in algorithm.named_modules():
        if isinstance(module, _BatchNorm):
            raise UserError(
                f"algorithm: its network {name} is a {type(module).__name__}, whose numbers depend on how a batch is "
                "cut among workers; use torch.nn.GroupNorm, which normalises within a datum"
            )
    return algorithm


def sources(config: ExperimentConfig, dataset: Dataset, device: torch.device) -> Sources:
    """The training data as the engine asks for them.

    Args:
        config: batch size, seed, binarisation.
        dataset: of that configuration.
        device: where batches are needed.

    Raises:
        UserError: a batch cannot be cut into as many slices as there are logical workers.
    """
    training = config.training

    def source(dataset: Dataset, data: DataConfig, seed: int) -> Source:
        return Stream(
            dataset.train,
            dataset.spec,
            binarisation=data.binarisation,
            batch_size=training.batch_size,
            seed=seed,
            device=device,
            dtype=getattr(torch, training.dtype),
            logical_workers=training.logical_workers,
        ).slice

    first = source(dataset, config.data, training.seed)
    if dataset.other is None or config.data.other is None:
        return Sources(first, None)
    seed = derive_seed(training.seed, "other")  # so that the sources are not paired by their order
    return Sources(first, source(dataset.other, config.data.other, seed))


def _why_binary(data: DataConfig, dataset: Dataset) -> str:
    """For data of which nobody has said that they are binary."""
    if dataset.spec.values != "binary" or dataset.spec.levels == 1 or data.binarisation != "none":
        return ""
    white = dataset.spec.levels
    return (
        f". Every pixel of {data.path or dataset.name} is 0 or {white}, so these are binary data, unless they are grey "
        f"pixels that happen to be black and white: --set data.levels={white} says so"
    )
