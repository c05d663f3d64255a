"""What is kept of steps."""

import gc

import torch
from torch import Tensor

from avb_service.fitting import Fit
from avb_service.training.rows import Rows


def test_rows_are_what_was_appended_however_many():
    rows = Rows()
    for repetition in range(2):
        given = torch.arange(3 * 700.0).view(700, 3) + repetition
        for row in given:
            rows.append(row[0], row[1:])
        assert torch.equal(rows.all(), given)
        rows.clear()
        assert len(rows.all()) == 0


def test_steps_between_two_reports_leave_no_tensor_behind(small, tmp_path):
    """Tensors that stayed would keep the memory of those that come and go in pieces."""
    engine = Fit(small("avb", {"training.rounds": 50, "training.report_every": 50}), tmp_path).engine
    alive: list[int] = []

    def count() -> None:
        gc.collect()
        alive.append(sum(issubclass(type(each), Tensor) for each in gc.get_objects()))

    engine.run(lambda report: None, count)
    assert len(set(alive[1:])) == 1, alive
