"""Connecting to Ray: an existing cluster where there is one, else a local one.

Floor 8.
"""

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from avb_service.distributed import absent, own, probe
from avb_service.distributed.capacity import Capacity, Node
from avb_service.distributed.hosts import mixed
from avb_service.errors import UserError
from avb_service.kinds import DEVELOPMENT

LOGGER = logging.getLogger(__name__)

ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.25",  # also how often Ray Train collects reports: 2 s by default
    "TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S": "5",  # those that hang are killed after it
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_FUNCTION_THREAD_TIMEOUT_S": "60",  # for a trial that is stopped to end; else the next one is given up
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",  # the progress says it in a line
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # else a trial that fails before its first report ends the search
}
QUIET: dict[str, Any] = {"logging_level": logging.WARNING, "log_to_driver": False}

ROOM = 60  # seconds for which Ray Train waits for room before it asks again
SLOT = "avb-slot"  # room that Ray Tune keeps for trials that train in its own actors, one after the other
NODES = "AVB_NODES"  # how many hosts the cluster is to have; deploy/install.sh sets it on the head
PATIENCE = 900  # seconds for them to join: the first installation on a host takes minutes
REACH = 5  # seconds for a cluster to take a connection
ANSWER = 60  # seconds for all to say what they have installed

# Blocks of this process, in several threads maybe, that use a connection that the first of them has made: RAY_ADDRESS
# as that found it, once for each. The last one to end takes the connection down.
_DOOR = threading.Lock()
_INSIDE: list[str | None] = []


def own_capacity() -> Capacity | None:
    """What a cluster of our own has at most, known before it is started; None where `cluster` joins another.

    Ray takes no more than what is here; where it may use less (a container's share), that is found once it has started.

    Raises:
        UserError: Ray has no place for its files, or a token that it is to use cannot be read.
    """
    import ray
    import torch

    if ray.is_initialized() or _address() != "local":
        return None
    own.prepare()
    return Capacity((Node(float(os.cpu_count() or 1), float(torch.cuda.device_count())),))


@contextmanager
def cluster(
    on_wait: Callable[[str], None] = LOGGER.warning, fits: Callable[[Capacity], object] = lambda capacity: None
) -> Iterator[Capacity]:
    """Be connected to Ray for a block: to the cluster that RAY_ADDRESS names, else to one of our own on this machine.

    Our own is started for the block and stopped after it; blocks of several threads share it, and the last to end stops
    it. Another that runs on this machine is not joined unless RAY_ADDRESS says so (`auto` finds the one that `ray
    start` made): it may be another program's, and end with that. One that the process is connected to already is used
    and left running.

    Args:
        on_wait: told which hosts are waited for, and when they are waited for no longer.
        fits: raises a `UserError` where that is too small a cluster; what it says is told before hosts are waited for.

    Raises:
        UserError: no cluster answers there, it is too small, AVB_NODES is no number, or hosts have different versions
            of a package.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    address, first, mine = _enter()
    try:
        if first and address != "local":
            here = _gather(on_wait, fits)
            _compare(_versions())
            if len(_capacity().nodes) < here:  # one was lost as it was asked
                _gather(on_wait, fits)
        fits(capacity := _capacity())
        yield capacity
    finally:
        if mine:
            _leave()


def _enter() -> tuple[str, bool, bool]:
    """Connect, unless this process is connected.

    Returns:
        The address of the cluster; whether it was connected to just now; whether the connection is ours to take down.
    """
    import ray

    with _DOOR:
        address, given = _address(), os.environ.get("RAY_ADDRESS")
        first = not ray.is_initialized()
        if first and address == "local":
            own.start(_runtime_env, **QUIET)
        elif first:
            _join(address)
        mine = first or bool(_INSIDE)
        if mine:
            _INSIDE.append(_INSIDE[0] if _INSIDE else given)
    return address, first, mine


def _leave() -> None:
    """Take the connection down, if nobody else uses it."""
    import ray

    with _DOOR:
        given = _INSIDE.pop()
        if not _INSIDE:
            ray.shutdown()
            os.environ.pop("RAY_ADDRESS", None)
            if given is not None:
                os.environ["RAY_ADDRESS"] = given


def _address() -> str:
    """Of the cluster that is used: `local` for one of our own."""
    return os.environ.get("RAY_ADDRESS") or "local"


def _join(address: str) -> None:
    """Connect to a cluster that runs.

    Raises:
        UserError: none answers there, or it lets nobody in without a token that there is not.
    """
    import ray
    from ray.exceptions import AuthenticationError

    try:
        socket.create_connection(_head(address), REACH).close()  # Ray would try for minutes
        ray.init(address=address, runtime_env=_runtime_env({}), **QUIET)
    except OSError as error:
        raise UserError(
            f"no Ray cluster answers at RAY_ADDRESS={address} ({error}): start it (ray up), mend the address, or unset "
            "it to run on this machine alone"
        ) from error
    except AuthenticationError as error:
        raise UserError(
            f"the Ray cluster at RAY_ADDRESS={address} asks for its token, and here is none, or another: name the file "
            f"that holds it with {own.TOKEN_FILE}"
        ) from error


def _head(address: str) -> tuple[str, int]:
    """Host and port of HOST:PORT, of ray://HOST:PORT, or of what `auto` finds on this machine.

    Raises:
        UserError: it is none of these.
        ConnectionError: nothing is found.
    """
    from ray._private.services import canonicalize_bootstrap_address  # what `auto` means, Ray alone knows

    try:
        place = urlsplit(address if "://" in address else f"ray://{canonicalize_bootstrap_address(address)}")
        if place.scheme == "ray" and place.hostname and place.port:
            return place.hostname, place.port
    except ValueError:  # no number, or none that a port can be
        pass
    raise UserError(f"RAY_ADDRESS={address}: expected HOST:PORT, ray://HOST:PORT, auto or local")


def _gather(on_wait: Callable[[str], None], fits: Callable[[Capacity], object]) -> int:
    """Wait for the hosts that the cluster is to have; what is started before them would never use them.

    Returns:
        How many are there.
    """
    given = os.environ.get(NODES, "1")
    if not given.isdigit():
        raise UserError(f"{NODES}={given}: expected how many hosts the cluster is to have")
    expected, until, seen = int(given), time.monotonic() + PATIENCE, -1
    while (here := len((has := _capacity()).nodes)) < expected:
        how = f"{here} of {expected} hosts have joined the cluster, with {has.cpus:g} CPUs and {has.gpus:g} GPUs"
        lost, most = absent.failed([node["NodeManagerAddress"] for node in _alive()])
        if most is not None and most < expected:  # those that may still come are not enough
            on_wait("\n  ".join([f"{how}; going on without the others", *(absent.line(host, lost) for host in lost)]))
            break
        if time.monotonic() > until:
            on_wait(f"{how}; going on without the others. {absent.WHY} says why they are not there")
            break
        if here != seen:
            lacking = ""
            try:
                fits(has)
            except UserError as error:
                lacking = f". It is refused if they bring no more room: {error}"
            on_wait(f"{how}; waiting up to {PATIENCE // 60} min for the others{lacking}")
        seen = here
        time.sleep(1)
    return here


def _versions() -> dict[str, dict[str, str]]:
    """What each host that answers has installed; our own package is the same everywhere, since it is sent along."""
    import ray
    from ray.exceptions import RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    def ask(node: dict[str, Any]) -> Any:  # noqa: ANN401  a reference
        there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        return ray.remote(probe.packages).options(num_cpus=0, scheduling_strategy=there).remote()

    asked = {ask(node): node["NodeManagerAddress"] for node in _alive()}
    answered, _ = ray.wait(list(asked), num_returns=len(asked), timeout=ANSWER)
    found = {}
    for answer in answered:
        with suppress(RayError):  # the host was lost, which Ray may have learned only now
            found[asked[answer]] = ray.get(answer)
    return found


def _compare(versions: Mapping[str, Mapping[str, str]]) -> None:
    """Refuse a cluster on which the same model would be trained by different programs.

    Raises:
        UserError: hosts have different versions of a package; names them.
    """
    packages = {package for has in versions.values() for package in has}
    by_package = {name: {host: has.get(name, "none") for host, has in versions.items()} for name in sorted(packages)}
    if problems := mixed(by_package):
        raise UserError("\n  ".join(["the hosts of the cluster differ:", *problems]))


def _capacity() -> Capacity:
    """Of the hosts that are there now."""
    has = [node["Resources"] for node in _alive()]
    return Capacity(tuple(Node(each.get("CPU", 0), each.get("GPU", 0)) for each in has))


def _alive() -> list[dict[str, Any]]:
    import ray

    return [node for node in ray.nodes() if node["Alive"]]


def _runtime_env(more: dict[str, str]) -> dict[str, Any]:
    """What every process of the job gets: the settings, and the package as it is here; other hosts may have another."""
    settings = {name: os.environ[name] for name in (*ENVIRONMENT, DEVELOPMENT) if name in os.environ}
    return {"env_vars": {**settings, **more}, "py_modules": [str(Path(__file__).parents[1])]}
