import pytest

from avb_service.distributed.capacity import Capacity, Node
from avb_service.distributed.cluster import own_capacity
from avb_service.distributed.scoring import on_cluster
from avb_service.errors import UserError
from avb_service.scaling import ScalingConfig


def models(nodes: list[tuple[float, float]], workers: int, cpus: float = 1, gpus: float = 0) -> int:
    scaling = ScalingConfig(workers=workers, cpus_per_worker=cpus, gpus_per_worker=gpus)
    return Capacity(tuple(Node(*node) for node in nodes)).models_at_a_time(scaling)


@pytest.mark.parametrize(
    ("nodes", "workers", "cpus", "gpus", "expected"),
    [
        ([(2, 0)], 1, 1, 0, 2), ([(2, 0)], 2, 1, 0, 1), ([(16, 0)], 4, 1, 0, 4),
        ([(2, 0), (2, 0)], 2, 1, 0, 2), ([(2, 0), (2, 0)], 3, 1, 0, 1),  # workers of a model on both hosts
        ([(3, 0), (3, 0)], 1, 2, 0, 2),  # a core of each is of no use
        ([(0, 0), (4, 0)], 2, 2, 0, 1),  # a head that computes nothing
        ([(16, 2)], 1, 1, 1, 2), ([(2, 8)], 1, 1, 1, 2), ([(16, 4)], 1, 1, 2, 2),
        ([(16, 1)], 1, 1, 0.5, 2), ([(16, 2)], 1, 1, 0.4, 4),  # no worker has parts of two GPUs
        ([(2, 0)], 1, 0.5, 0, 4), ([(2, 0)], 1, 0.1, 0, 18),  # the trials' own actors need room as well
    ],
)  # fmt: skip
def test_models_are_packed_node_by_node(nodes, workers, cpus, gpus, expected):
    assert models(nodes, workers, cpus, gpus) == expected


@pytest.mark.parametrize(
    ("nodes", "workers", "cpus", "gpus"),
    [
        ([(2, 0), (2, 0)], 1, 4, 0),  # enough in all, on no host enough
        ([(2, 0)], 3, 1, 0), ([(16, 0)], 1, 1, 1), ([(8, 1), (8, 1)], 1, 1, 2), ([], 1, 1, 0),
        ([(8, 0), (1, 4)], 2, 2, 1),  # the GPUs are where the cores are not
    ],
)  # fmt: skip
def test_a_model_that_fits_nowhere_is_refused(nodes, workers, cpus, gpus):
    with pytest.raises(UserError, match=f"{workers} workers of {cpus} CPUs and {gpus} GPUs do not fit"):
        models(nodes, workers, cpus, gpus)


def test_a_model_that_can_do_with_fewer_workers_is_refused_only_where_these_do_not_fit():
    few = Capacity((Node(2, 0),))
    assert few.models_at_a_time(ScalingConfig(workers=4, min_workers=2)) == 1
    with pytest.raises(UserError, match="3 workers of 1 CPUs and 0 GPUs do not fit"):
        few.models_at_a_time(ScalingConfig(workers=4, min_workers=3))
    with pytest.raises(UserError, match="min_workers: 5 are more than workers, 4"):
        ScalingConfig.parse({"workers": 4, "min_workers": 5})


@pytest.mark.parametrize(("node", "most"), [(Node(2, 0), 2), (Node(16, 4), 4)])
def test_more_scorers_than_there_are_cores_or_gpus_are_refused(node, most):
    assert on_cluster(Capacity((node,)), most)
    with pytest.raises(UserError, match=rf"--workers: given 99, expected at most {most}; the cluster has 1 node"):
        on_cluster(Capacity((node,)), 99)


def test_what_a_cluster_has_is_said_in_a_line():
    assert str(Capacity((Node(2, 0), Node(4, 1)))) == "2 node(s), 6 CPUs, 1 GPUs"


def test_what_another_cluster_has_is_not_known_before_it_is_joined(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    assert own_capacity() is None
