"""What every estimator is, and how a data set is scored block by block.

Floor 5. An estimator is a `Scorer`: from a block of data to numbers for each datum. Its noise is a function of (seed,
estimator, first datum of the block), so a value does not depend on who computes it, nor when: blocks can be scored by
many workers, kept as they come, and left out when an interrupted evaluation goes on.
"""

import hashlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.distributions import Distribution

from avb_service.algorithm import Algorithm, JointDensity
from avb_service.errors import DataError, UserError
from avb_service.kinds import packages
from avb_service.provenance import code_version
from avb_service.records.estimate import NATS, Estimate, Recipe
from avb_service.records.key import Key, Kind, Quantity
from avb_service.seeding import seeded
from avb_service.storage import write_file, writing

Scored = Algorithm | JointDensity  # a method of this package, or a model that was given by its densities
Columns = Mapping[str, Tensor]  # numbers for each datum, [n]; NATS is its log-likelihood
BLOCK = 50  # data: on a core, enough for full matrix products, and few enough to be shared out and lost
CHECKSUM = hashlib.sha256().digest_size  # bytes

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Scorer:
    """An estimator of log p(x), bound to a model.

    Attributes:
        key: what its estimates are known by; it seeds their noise.
        kind: what its mean is of the quantity, or how that follows from the numbers of all data.
        rows: decoder evaluations that a datum needs at a time, to bound the memory.
        score: a block of data [b, ...] -> its columns, each [b].
        block: data at most in a block, in the place of the task's, for an estimator that learns from its block.
        quantity: what it is about, where that is not log p(x).
        recipe: what else was asked for, the same for all data.
    """

    key: Key
    kind: Kind | Callable[[Columns], Kind]
    rows: int
    score: Callable[[Tensor], Columns]
    block: int | None = None
    quantity: Quantity = "log_likelihood"
    recipe: Recipe = field(default_factory=dict)


@dataclass(frozen=True)
class Task:
    """A data set to be scored.

    Attributes:
        model: whose likelihood it is.
        make: binds the estimator to the model. Its repr says what the numbers depend on.
        x: data [n, ...].
        seed: of all noise.
        memory_mib: bound on what one batch of decoder outputs takes.
        block_data: data at most in a block.
    """

    model: Scored
    make: Callable[[Scored], Scorer]
    x: Tensor
    seed: int
    memory_mib: int
    block_data: int = BLOCK

    def blocks(self, scorer: Scorer) -> list[range]:
        """The data cut in pieces that fit in memory, the same wherever they are scored."""
        numbers = self.model.example.numel() * scorer.rows
        fits = self.memory_mib * 2**20 // (numbers * 4 * 4)  # logits, and what a log-probability makes of them
        size = max(1, min(scorer.block or self.block_data, fits))
        return [range(start, min(start + size, len(self.x))) for start in range(0, len(self.x), size)]

    def score(self, scorer: Scorer, block: range) -> Columns:
        """One block's columns, in evaluation mode and full precision.

        Raises:
            DataError: a log-likelihood that is no number; names the datum.
        """
        with seeded(self.seed, str(scorer.key), block.start), evaluating(self.model):
            columns = dict(scorer.score(self.x[block.start : block.stop]))
        columns = {name: column.detach().double().cpu() for name, column in columns.items()}
        if (broken := columns[NATS].isnan()).any():
            raise DataError(
                f"{scorer.key} of datum {block.start + int(broken.nonzero()[0])} is not a number: the model's weights "
                "or the datum are not finite"
            )
        return columns


Runner = Callable[[Task, Sequence[range]], Iterator[tuple[range, Columns]]]
Progress = Callable[[int, int], None]  # data done, data in all


def serially(task: Task, blocks: Sequence[range]) -> Iterator[tuple[range, Columns]]:
    """Score blocks here, one after the other."""
    scorer = task.make(task.model)
    for block in blocks:
        yield block, task.score(scorer, block)


def estimate(
    task: Task,
    *,
    run: Runner = serially,
    store: Path | None = None,
    progress: Progress = lambda done, total: None,
) -> Estimate:
    """Score a data set.

    Args:
        task: model, estimator and data.
        run: who scores the blocks; the numbers are the same.
        store: folder where blocks are kept as they come, and looked up when this is called again.
        progress: told of every block.

    Raises:
        UserError: the estimator does not apply to the model, or the folder cannot be written.
    """
    if len(task.x) == 0:
        raise DataError("no data to score: given 0, expected at least 1")
    start = time.perf_counter()
    scorer = task.make(task.model)
    blocks = task.blocks(scorer)
    kept = _Blocks(store / f"{scorer.key}-{_fingerprint(task, scorer)}") if store is not None else None
    scored: dict[range, Columns] = {} if kept is None else kept.read(blocks)
    done = sum(map(len, scored))
    progress(done, len(task.x))
    for block, columns in run(task, [block for block in blocks if block not in scored]):
        if kept is not None:
            kept.write(block, columns)
        scored[block] = columns
        done += len(block)
        progress(done, len(task.x))
    names = sorted(scored[blocks[0]])  # as in a stored block: what is printed of a resumed table is the same
    table = {name: torch.cat([scored[block][name] for block in blocks]) for name in names}
    kind = scorer.kind(table) if callable(scorer.kind) else scorer.kind
    arrays = {name: column.numpy() for name, column in table.items()}
    whole = Estimate.of(scorer.key, kind, arrays, scorer.quantity, scorer.recipe)
    return replace(whole, seconds=time.perf_counter() - start)


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """No gradients unless asked for, no dropout, float32 products and convolutions in full: no rounding is in a number.

    GPUs convolve in TF32 unless told otherwise, whatever the precision of matrix products. Distributions do not look
    at what they are given: chains that leave the range of floats are told by what comes of it, and move back.
    """
    training = [(module, module.training) for module in model.modules()]
    precision, tf32 = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    validating = Distribution._validate_args
    model.eval()
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    Distribution.set_default_validate_args(False)
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in training:
            module.training = mode
        torch.set_float32_matmul_precision(precision)
        torch.backends.cudnn.allow_tf32 = tf32
        Distribution.set_default_validate_args(validating)


class _Blocks:
    """Scored blocks in a folder, a file each: its SHA-256, then its columns as safetensors."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with writing(folder):  # before anything is scored
            folder.mkdir(parents=True, exist_ok=True)

    def read(self, blocks: Sequence[range]) -> dict[range, Columns]:
        """Those blocks that are there; a damaged one is named and scored again."""
        found: dict[range, Columns] = {}
        for block in blocks:
            path = self._path(block)
            try:
                content = path.read_bytes()
                checksum, columns = content[:CHECKSUM], content[CHECKSUM:]
                if hashlib.sha256(columns).digest() != checksum:
                    raise ValueError("it does not match its checksum")
                found[block] = safetensors.torch.load(columns)
            except FileNotFoundError:
                continue
            except (OSError, ValueError, SafetensorError) as error:
                _log.warning("%s is damaged and scored again: %s", path, error)
        return found

    def write(self, block: range, columns: Columns) -> None:
        path = self._path(block)
        with writing(path):
            content = safetensors.torch.save(dict(columns))
            write_file(path, hashlib.sha256(content).digest() + content)

    def _path(self, block: range) -> Path:
        return self.folder / f"{block.start:08d}-{block.stop:08d}.block"


def _fingerprint(task: Task, scorer: Scorer) -> str:
    """What the numbers depend on: weights and what they are the weights of, data, recipe, seed, and the code."""
    if not isinstance(task.model, Algorithm):
        raise UserError(
            "scored data are kept of models of this package alone, whose weights and configuration say which they are"
        )
    weights = {name: tensor.cpu().contiguous().clone() for name, tensor in task.model.state_dict().items()}
    digest = hashlib.sha256(safetensors.torch.save({**weights, "": task.x.cpu().contiguous()}))
    settings = (
        scorer.key,
        task.make,
        task.seed,
        task.memory_mib,
        task.block_data,
        task.model.config,
        code_version(packages()),
    )
    digest.update(repr(settings).encode())
    return digest.hexdigest()[:16]
