"""A search that starts before all hosts are there waits for them, and says so."""

import itertools
from types import SimpleNamespace

import pytest
import yaml

from avb_service.distributed import absent, cluster
from avb_service.errors import UserError
from avb_service.scaling import ScalingConfig


@pytest.fixture
def joined(monkeypatch):
    """Hosts that join one after the other, one a second, by a clock of our own."""

    def counts(*numbers: int, fits=lambda capacity: None) -> list[str]:
        clock, hosts, notes = itertools.count(), iter(numbers), []
        monkeypatch.setattr(cluster.time, "sleep", lambda seconds: None)
        monkeypatch.setattr(cluster.time, "monotonic", lambda: next(clock))
        capacity = lambda: cluster.Capacity((cluster.Node(2, 0),) * next(hosts, numbers[-1]))  # noqa: E731
        monkeypatch.setattr(cluster, "_capacity", capacity)
        monkeypatch.setattr(cluster, "_alive", lambda: [{"NodeManagerAddress": "10.0.0.1"}])
        cluster._gather(notes.append, fits)
        return notes

    return counts


def test_it_waits_for_the_hosts_that_are_to_come(joined, monkeypatch):
    monkeypatch.setenv("AVB_NODES", "3")
    notes = joined(1, 1, 2, 2, 2, 3)
    assert [note.split(" have")[0] for note in notes] == ["1 of 3 hosts", "2 of 3 hosts"]
    assert "with 4 CPUs and 0 GPUs" in notes[1]


def test_what_does_not_fit_yet_is_said_before_the_wait(joined, monkeypatch):
    monkeypatch.setenv("AVB_NODES", "3")
    scaling = ScalingConfig(workers=5)
    notes = joined(1, 1, 2, 3, fits=lambda capacity: capacity.models_at_a_time(scaling))
    assert [note.split(" have")[0] for note in notes] == ["1 of 3 hosts", "2 of 3 hosts"]
    refused = "refused if they bring no more room: scaling: 5 workers of 1 CPUs and 0 GPUs do not fit; the cluster has"
    assert f"{refused} 1 node(s)" in notes[0] and f"{refused} 2 node(s)" in notes[1]


def test_it_does_not_wait_for_ever(joined, monkeypatch):
    monkeypatch.setenv("AVB_NODES", "3")
    waiting, going_on = joined(2)
    assert "waiting up to 15 min" in waiting
    assert "2 of 3" in going_on and "going on without the others" in going_on and "ray exec" in going_on


@pytest.mark.parametrize(
    ("wanted", "failing", "waits"), [(4, [3], False), (3, [3], True), (3, [2, 3], False), (4, [], True)],
    ids=["one failed of all", "enough may still come", "too many failed", "none failed"],
)  # fmt: skip
def test_it_does_not_wait_for_hosts_on_which_ray_does_not_start(joined, monkeypatch, tmp_path, wanted, failing, waits):
    hosts = [f"10.0.0.{i}" for i in range(1, 5)]
    file = tmp_path / "bootstrap.yaml"
    file.write_text(yaml.safe_dump({"provider": {"type": "local", "head_ip": hosts[0], "worker_ips": hosts[1:]}}))
    monkeypatch.setattr(absent, "BOOTSTRAP", str(file))
    monkeypatch.setattr(absent.probe, "given_up", lambda: [hosts[i] for i in failing])
    monkeypatch.setenv("AVB_NODES", str(wanted))
    notes = joined(2)
    assert ("waiting up to 15 min" in notes[0]) == waits
    said = [absent.line(hosts[i], [hosts[i]]) for i in failing]
    assert waits or notes == [
        f"2 of {wanted} hosts have joined the cluster, with 4 CPUs and 0 GPUs; going on without "
        + "\n  ".join(["the others", *said])
    ]


def test_what_failed_in_another_cluster_counts_for_nothing(monkeypatch, tmp_path):
    file = tmp_path / "bootstrap.yaml"
    monkeypatch.setattr(absent, "BOOTSTRAP", str(file))
    monkeypatch.setattr(absent.probe, "given_up", lambda: ["10.0.0.2"])
    assert absent.failed(["10.0.0.1"]) == ([], None), "here is no head"
    file.write_text(yaml.safe_dump({"provider": {"head_ip": "10.0.0.1", "worker_ips": ["10.0.0.2"]}}))
    assert absent.failed(["10.0.0.1"]) == (["10.0.0.2"], 1)
    assert absent.failed(["10.0.0.1", "10.0.0.2"]) == ([], 2)
    assert absent.failed(["10.1.0.1"]) == ([], None)


@pytest.mark.parametrize("given", [None, "1", "2"])
def test_it_does_not_wait_for_more_than_it_was_told_of(joined, monkeypatch, given):
    monkeypatch.delenv("AVB_NODES", raising=False)
    if given:
        monkeypatch.setenv("AVB_NODES", given)
    assert joined(2) == []


def test_hosts_with_other_versions_are_refused_by_name():
    same = {"ray": "2.60.0", "torch": "2.15.0"}
    cluster._compare({"10.0.0.1": same, "10.0.0.2": same})
    with pytest.raises(UserError, match=r"torch: 2.15.0 on 10.0.0.1, 2.14.1 on 10.0.0.2: install the same") as told:
        cluster._compare({"10.0.0.1": same, "10.0.0.2": {**same, "torch": "2.14.1"}})
    assert "ray" not in str(told.value)
    with pytest.raises(UserError, match="torch: 2.15.0 on 10.0.0.1, none on 10.0.0.2"):
        cluster._compare({"10.0.0.1": same, "10.0.0.2": {"ray": "2.60.0"}})


def test_a_number_that_is_none_is_refused(monkeypatch):
    monkeypatch.setenv("AVB_NODES", "all")
    with pytest.raises(UserError, match="AVB_NODES=all: expected how many hosts"):
        cluster._gather(print, lambda capacity: None)


def test_a_host_that_is_lost_as_it_is_asked_is_left_out(monkeypatch):
    import ray
    from ray.exceptions import TaskUnschedulableError

    def get(answer: str) -> dict[str, str]:
        if answer == "lost":
            raise TaskUnschedulableError("the node does not exist any more")
        return {"torch": "2.14.0"}

    hosts = [{"NodeID": f"{i:056x}", "NodeManagerAddress": f"10.0.0.{i}"} for i in (1, 2)]
    answers = iter(["here", "lost"])
    monkeypatch.setattr(cluster, "_alive", lambda: hosts)
    monkeypatch.setattr(ray, "remote", lambda function: SimpleNamespace(options=lambda **there: task))
    task = SimpleNamespace(remote=lambda: next(answers))
    monkeypatch.setattr(ray, "wait", lambda asked, num_returns, timeout: (asked, []))
    monkeypatch.setattr(ray, "get", get)
    assert cluster._versions() == {"10.0.0.1": {"torch": "2.14.0"}}


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "auto"])
def test_a_cluster_that_does_not_answer_is_named_before_ray_asks_for_minutes(address, monkeypatch):
    import ray
    from ray._private import services

    def asked(*arguments: object, **options: object) -> None:
        pytest.fail("Ray was asked")

    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setattr(ray, "init", asked)
    monkeypatch.setattr(services, "find_gcs_addresses", lambda *_: set())
    monkeypatch.setattr(services, "find_bootstrap_address", lambda *_: "127.0.0.1:1")  # what a cluster that died left
    with pytest.raises(UserError, match=f"RAY_ADDRESS={address} .*refused"), cluster.cluster():
        pass


@pytest.mark.parametrize("address", ["head", "127.0.0.1:many", "127.0.0.1:99999", "http://127.0.0.1:1", "ray://head"])
def test_an_address_that_is_none_is_refused(address, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(UserError, match="expected HOST:PORT, ray://HOST:PORT, auto or local"), cluster.cluster():
        pass
