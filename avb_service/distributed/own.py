"""A cluster of our own, on this machine, for one command: where it keeps files, who is let in, how it starts.

Floor 8.
"""

import os
import secrets
import socket
import tempfile
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from avb_service.errors import UserError
from avb_service.places import private_folder, writable

PLACE, TOKEN, TOKEN_FILE = "RAY_TMPDIR", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"  # Ray's names
LAPTOP = {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"}  # an actor for each model, for what happens to rented hosts only
SOCKET = 107  # bytes of a socket's path, at most
LONGEST = SOCKET - len("/ray/session_2026-11-29_08-17-55_560001_4194304/sockets/plasma_store.1")


def prepare() -> None:
    """Settle where Ray keeps sockets and logs, and what lets its processes in, before anything expensive starts.

    Both are this user's alone. Nothing is put into the home, which there may not be: the folder is among the temporary
    files, the token in the environment of the processes unless the user keeps one. What he has set himself is left.

    Raises:
        UserError: a folder or a token that Ray is to use cannot be used; names the variable that moves it.
    """
    place = Path(os.environ[PLACE]) if os.environ.get(PLACE) else _private()
    if not writable(place / "ray"):
        raise UserError(f"Ray cannot keep sockets and logs in {place / 'ray'}: name a folder to write to with {PLACE}")
    if (length := len(os.fsencode(place.absolute()))) > LONGEST:
        raise UserError(
            f"Ray cannot keep sockets in {place}, whose path is {length} bytes long: name a folder with {PLACE} whose "
            f"path has {LONGEST} at most"
        )
    os.environ[PLACE] = str(place.absolute())
    if os.environ.get("RAY_AUTH_MODE", "").lower() != "token" or os.environ.get(TOKEN):
        return
    if given := os.environ.get(TOKEN_FILE):
        if reason := _unreadable(Path(given)):
            raise UserError(f"{TOKEN_FILE}={given}: {reason}; name the file of a token, or unset it to have one made")
    elif _unreadable(kept := Path.home() / ".ray" / "auth_token"):
        os.environ[TOKEN] = secrets.token_hex(32)
    else:
        with suppress(OSError):
            kept.chmod(0o600)  # Ray lets everybody read what lets one in


def start(settings: Callable[[dict[str, str]], dict[str, Any]], **options: Any) -> None:  # noqa: ANN401
    """Start a cluster, known to all its processes and this one by its address.

    Ray's list of actors, which is asked when room is given back, would else look for the cluster among the processes of
    the machine, and give up where it finds two; the CPUs of a stopped trial would never be freed.

    Args:
        settings: makes Ray's runtime environment of variables.
        options: of `ray.init`.

    Raises:
        UserError: it does not start.
    """
    import ray
    from ray._raylet import Config  # type: ignore[attr-defined]  # compiled
    from ray.util import get_node_ip_address

    prepare()
    Config.initialize("")  # a Ray that was imported earlier knows the environment as it was then: without a token
    with closing(socket.socket()) as probe:
        probe.bind(("", 0))
        port = probe.getsockname()[1]
    os.environ["RAY_GCS_SERVER_PORT"] = str(port)
    os.environ.setdefault("RAY_worker_niceness", "0")  # 15 by default: Ray's own processes would push workers aside
    here = {**LAPTOP, "RAY_ADDRESS": f"{get_node_ip_address()}:{port}"}
    try:
        # It is the dashboard that answers, so that has to be there as well.
        ray.init(address="local", include_dashboard=True, runtime_env=settings(here), **options)
    except Exception as error:  # as many kinds as there are processes that may not start
        ray.shutdown()
        reason = next(iter(str(error).strip().splitlines()), "") or repr(error)
        raise UserError(
            f"Ray does not start here: {reason} Its logs are in {os.environ[PLACE]}/ray/session_latest/logs. If the "
            "machine was only busy, try again"
        ) from error
    os.environ["RAY_ADDRESS"] = here["RAY_ADDRESS"]


def _private() -> Path:
    """A folder of this user alone, below the first place for temporary files whose path leaves room for a socket's."""
    given = Path(tempfile.gettempdir())
    return private_folder(given if len(os.fsencode(given)) + len("/avb-4294967295") <= LONGEST else Path("/tmp"))


def _unreadable(path: Path) -> str:
    """Why a file holds no text that can be read; empty where it does."""
    try:
        return "" if path.read_text(encoding="utf-8").strip() else "it is empty"
    except (OSError, UnicodeDecodeError) as error:
        return f"it cannot be read ({getattr(error, 'strerror', None) or error})"
