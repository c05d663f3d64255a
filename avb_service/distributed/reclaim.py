"""Room that stays reserved for workers who will never come.

Floor 8. Ray Train reserves room for a group of workers, and has an actor that gives it back should the group's
controller be killed. It names the room to that actor only when all workers have started (ray-project/ray#62753),
so a trial that is killed before leaves its room reserved for as long as the cluster runs, and others wait for it.
"""

import logging
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from avb_service.distributed.cluster import ROOM, SLOT
from avb_service.errors import UserError

LOGGER = logging.getLogger(__name__)

ANSWER = 10  # seconds for the dashboard to answer
EVERY = 10  # seconds between two looks
# Seconds for which a reservation may hold nobody: workers come at once where there is room, or ask for room anew.
PATIENCE = {"CREATED": 30, "PENDING": ROOM + 30}
MANY = 10_000  # more than a cluster has of anything


def check_dashboard() -> None:
    """Refuse a Ray without a dashboard: what gives back the room of a trial that was stopped asks it what has ended.

    Raises:
        UserError: it does not answer, or another cluster's answers in its place.
    """
    from ray import get_runtime_context

    here, until = get_runtime_context().get_node_id(), time.monotonic() + ANSWER
    while here not in _nodes():
        if time.monotonic() > until:
            raise UserError(
                "the dashboard of the Ray cluster in use does not answer; it tells a search which trials have ended, "
                "and without it the search would wait for ever. Start Ray with it (ray.init(include_dashboard=True), "
                "or ray start --include-dashboard=true), or end the connection (ray.shutdown()): the search then "
                "starts a Ray of its own"
            )
        time.sleep(0.5)


def _nodes() -> set[str]:
    """The hosts that the dashboard tells of; none where it does not answer."""
    from ray.util.state import list_nodes
    from ray.util.state.exception import RayStateApiException

    try:
        return {node.node_id for node in list_nodes(limit=MANY, timeout=ANSWER)}
    except RayStateApiException:
        return set()


@contextmanager
def reclaiming() -> Iterator[None]:
    """Give abandoned room back, for a block in which this driver starts workers."""
    over, since = threading.Event(), dict[str, float]()

    def watch() -> None:
        while not over.wait(EVERY):
            try:
                for name in overdue(since, reserved(), time.monotonic()):
                    LOGGER.info("room that was reserved for workers who never came is given back: %s", name)
                    _give_back(name)
            except Exception as error:  # the head may be away; those who train will say so
                LOGGER.info("cannot see what is reserved: %s", error)

    watcher = threading.Thread(target=watch, daemon=True, name="reclaiming")
    watcher.start()
    try:
        yield
    finally:
        over.set()


def overdue(since: dict[str, float], reserved: Mapping[str, str], now: float) -> list[str]:
    """Which of the reservations that hold nobody have done so for too long.

    Args:
        since: when each was first seen so, seconds; brought up to date.
        reserved: their states, by id.
        now: seconds.
    """
    for name in since.keys() - reserved.keys():
        del since[name]
    return [name for name, state in reserved.items() if now - since.setdefault(name, now) > PATIENCE[state]]


def reserved() -> dict[str, str]:
    """States of the reservations for workers that hold none, by id: of this driver, and of drivers that are gone."""
    from ray import get_runtime_context
    from ray.util.state import list_actors, list_jobs, list_placement_groups

    groups = list_placement_groups(limit=MANY, detail=True)  # before the actors: who comes in between is seen
    actors = list_actors(filters=[("state", "!=", "DEAD")], limit=MANY, detail=True)
    running = {job.job_id for job in list_jobs(limit=MANY) if job.status == "RUNNING"}
    others = running - {get_runtime_context().get_job_id()}
    inhabited = {actor.placement_group_id for actor in actors}
    return {
        group.placement_group_id: group.state
        for group in groups
        if group.state in PATIENCE
        and not group.is_detached
        and group.creator_job_id not in others
        and group.placement_group_id not in inhabited
        and not group.name.startswith(SLOT)  # Ray Tune gives it back
    }


def _give_back(name: str) -> None:
    from ray import PlacementGroupID
    from ray.util.placement_group import PlacementGroup, remove_placement_group

    remove_placement_group(PlacementGroup(PlacementGroupID.from_hex(name)))
