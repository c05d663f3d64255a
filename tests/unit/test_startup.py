"""A group of workers starts with what it needs; one that does not start is given up, and one that does is not."""

import pickle
import threading

import pytest
from ray.train.torch import TorchTrainer

from avb_service.distributed import startup
from avb_service.distributed.startup import LeanTrainer, StartsInTime

SOON = 0.05


@pytest.fixture
def ended(monkeypatch):
    event = threading.Event()
    monkeypatch.setattr(startup.os, "_exit", lambda code: event.set())
    return event


def test_a_start_that_hangs_is_given_up(ended):
    with StartsInTime(SOON).on_worker_group_start():
        assert ended.wait(10)


def test_so_is_one_that_hangs_as_the_workers_are_told_what_to_do(ended):
    with StartsInTime(SOON).on_worker_group_start():
        pass
    assert ended.wait(10)


def test_workers_that_train_are_not(ended):
    watch = StartsInTime(SOON)
    with watch.on_worker_group_start():
        watch.after_worker_group_training_start(None)
        assert not ended.wait(4 * SOON)


def test_nor_is_a_start_that_fails_by_itself(ended):
    with pytest.raises(ConnectionError), StartsInTime(SOON).on_worker_group_start():
        raise ConnectionError
    assert not ended.wait(4 * SOON)


def test_it_can_be_sent_to_where_workers_are_started():
    assert isinstance(pickle.loads(pickle.dumps(StartsInTime(SOON))), StartsInTime)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray's own, in what is left out
def test_nothing_but_ray_data_is_left_out_of_a_start():
    usual, lean = (
        {type(each).__name__ for each in trainer(print)._create_default_callbacks()}
        for trainer in (TorchTrainer, LeanTrainer)
    )
    assert usual - lean == {"DatasetsCallback"} and lean < usual
