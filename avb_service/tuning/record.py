"""What is kept of a search: its space, its trials, what was registered. Knows nothing of Ray Tune.

Floor 9.
"""

import json
import logging
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from avb_service.errors import UserError
from avb_service.formats import FORMAT, KEY, known_format
from avb_service.lock import OneOwner, Owned
from avb_service.provenance import code_version, same_numbers
from avb_service.settings import identity_of
from avb_service.storage import write_file, write_json
from avb_service.tracking import NOTE, Run, Status, close_open_children
from avb_service.tracking.publish import Published
from avb_service.tracking.server import refusals
from avb_service.trees import Tree, must_match, read_yaml, to_yaml
from avb_service.tuning.description import description, table
from avb_service.tuning.space import SpaceConfig
from avb_service.tuning.trials import TRIAL, Trial, ranked, read_trials

SPACE, PUBLISHED = "space.yaml", "published.json"
BRANCHED = "avb.branched_from"  # tag of a search

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Search(OneOwner):
    """A search and where it lives.

    Attributes:
        space: what is searched.
        folder: on a disk that all hosts share.
        tracking_uri: where it is recorded; absolute.
        run: the parent of the trials' runs.
        owned: what says that nobody else is at work on it; None where nobody else can be.
    """

    space: SpaceConfig
    folder: Path
    tracking_uri: str
    run: Run
    owned: Owned | None = None

    @property
    def trial_folder(self) -> Path:
        """Where each trial has its own."""
        return self.folder / "trials"

    def close(self, status: Status, reason: str) -> None:
        """Close the runs of a search that does not go on just now, so far as MLflow answers."""
        with suppress(UserError):
            self.check_owned()
            close_open_children(self.run.run_id, status, reason, self.tracking_uri)
            self.tell()
            self.run.finish(status, reason)

    def tell(self) -> None:
        """Show in MLflow what is searched, and what has come of it by now.

        Raises:
            UserError: MLflow refuses, or does not answer.
        """
        trials, published = self.trials(), self.published()
        with refusals(f"cannot describe the search at {self.tracking_uri}"):
            if trials:
                self.run.log_table("trials", table(self.space, trials, published))
            self.run.set_tags({NOTE: description(self.space, self.folder, trials, published)})

    def trials(self) -> list[Trial]:
        """All trials that have begun, best first."""
        return ranked(self.space.seeds, read_trials(self.folder, self.owned))

    def best(self) -> Trial:
        """The best trial of the search proper.

        Raises:
            UserError: none has reached an estimate; says how they failed.
        """
        trials = [trial for trial in self.trials() if trial.stage == TRIAL]
        if not trials or trials[0].objective is None:
            reasons = {f"{trial.job.name}: {trial.status}" for trial in trials}
            raise UserError(
                "\n  ".join(["no trial of the search reached an estimate on validation data:", *sorted(reasons)])
            )
        return trials[0]

    def published(self) -> dict[str, Published]:
        """What has been registered so far, by trial."""
        return published(self.folder)

    def keep(self, published: Mapping[str, Published]) -> None:
        """Remember what has been registered."""
        self.check_owned()
        write_json(self.folder / PUBLISHED, {name: asdict(each) for name, each in published.items()})


def published(folder: Path) -> dict[str, Published]:
    """What a search has registered so far, by trial."""
    path = folder / PUBLISHED
    rows = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return {name: Published(**row) for name, row in rows.items()}


def open_search(
    space: SpaceConfig, folder: Path, tracking_uri: str, origin: Path | None = None, owned: Owned | None = None
) -> Search:
    """Record a search, in the run that it was begun with if there is one.

    Args:
        space: what is searched.
        folder: from `new_folder` or `folder_to_resume`.
        tracking_uri: where it is recorded; absolute.
        origin: folder of the search that it branches from.
        owned: what says that nobody else is at work on it.
    """
    experiment = space.trial(space.presets[0]).tracking.experiment
    tags = {"avb.kind": "search", **({BRANCHED: origin.name} if origin else {})}
    run = Run.start(experiment, folder.name, space.tree(), resume_key=folder.name, uri=tracking_uri, tags=tags)
    search = Search(space, folder, tracking_uri, run, owned)
    search.tell()
    return search


def new_folder(space: SpaceConfig, storage: Path) -> Path:
    """Make the folder of a new search.

    Args:
        space: what is searched.
        storage: folder of all searches, on a disk that all hosts share.

    Raises:
        UserError: it cannot be written.
    """
    folder = storage.absolute() / f"{space.name}-{datetime.now():%Y%m%d-%H%M%S}"
    try:
        folder.mkdir(parents=True)
        write_file(folder / SPACE, to_yaml({KEY: FORMAT, **_begun_with(space)}).encode())
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror}; choose another place with --storage") from error
    return folder


def newest_folder(space: SpaceConfig, storage: Path) -> Path:
    """Find the newest search of that name.

    Raises:
        UserError: there is none.
    """
    begun = sorted(path.parent for path in storage.absolute().glob(f"{space.name}-????????-??????/{SPACE}"))
    if not begun:
        raise UserError(
            f"{storage.absolute()} holds no search {space.name!r}; start one without --resume and --branch, or name "
            "the place with --storage"
        )
    return begun[-1]


def folder_to_resume(space: SpaceConfig, storage: Path) -> Path:
    """Find the search to continue: the newest of that name.

    Raises:
        UserError: there is none, or it was begun with another space, or with code that computes something else; has the
            differing lines.
    """
    folder, now = newest_folder(space, storage), _begun_with(space)
    before = read_yaml(folder / SPACE)
    known_format(before, folder / SPACE)
    before.pop(KEY, None)
    before |= SpaceConfig.begun_with(before).tree()  # of an earlier release, in which there was less to say
    before["resolved"] = {preset: identity_of(tree) for preset, tree in before["resolved"].items()}
    same = same_numbers(str(before.get("code")), now["code"])
    if same is None:
        _log.warning(
            "%s was begun by an earlier version (%s), and nobody can tell whether this one (%s) computes the same: its "
            "trials are continued. To have all by one code, begin a new search from it with --branch NAME",
            folder.name,
            before["code"],
            now["code"],
        )
    must_match(
        {**before, "code": before.get("code") if same is False else now["code"]},
        now,
        f"--resume: the space, or what the code computes, has changed since {folder.name} was begun, so its trials "
        "could not be compared with new ones",
        "Give the same space and code, or begin a new search from it with --branch NAME",
    )
    return folder


def branch(space: SpaceConfig, name: str) -> SpaceConfig:
    """The same space under another name.

    Raises:
        UserError: that is no name, or the same.
    """
    if name == space.name:
        raise UserError(f"--branch {name}: that is the name of the search itself; give another")
    return SpaceConfig.parse({**space.tree(), "name": name}, "--branch")


def _begun_with(space: SpaceConfig) -> Tree:
    """What must not change while a search goes on."""
    return {**space.resolved(), "code": code_version(space.packages())}
