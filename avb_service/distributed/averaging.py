"""The mean of a tensor over all workers, in an order that depends on nothing but the workers.

Floor 8. So a run that lost a worker and went on is the undisturbed one to the bit.
"""

from functools import partial

import torch.distributed as dist
from torch import Tensor

from avb_service.distributed.neighbours import Neighbours
from avb_service.training.turn import Average


def averaging(largest: Tensor, timeout_s: float = 600) -> Average:
    """How the workers average: through memory where all are on one host, else by the process group; all call it.

    Args:
        largest: on the device of those that will be averaged, and as large as any of them.
        timeout_s: how long a worker waits for another on its host, seconds; elsewhere the process group's limit holds.
    """
    neighbours = Neighbours.meet(largest.nbytes, timeout_s) if largest.device.type == "cpu" else None
    return neighbours.mean if neighbours else partial(_all_reduced, dist.get_world_size())


def _all_reduced(workers: int, mine: Tensor) -> None:
    """Round a ring of more than two, the order of a sum depends on where a number lies: in one tensor, always alike."""
    dist.all_reduce(mine.div_(workers))
