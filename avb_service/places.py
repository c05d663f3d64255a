"""Where libraries keep files of their own, for users without a home that can be written: containers, service accounts.

Floor 4. What a library would keep in the home goes to a folder of this user alone among the temporary files, where the
home is not there or cannot be written. What the user has set himself is left.
"""

import getpass
import os
import stat
import tempfile
from pathlib import Path

from avb_service.errors import UserError

CACHE, PLOTS = "XDG_CACHE_HOME", "MPLCONFIGDIR"  # what variables name: folders for caches, for matplotlib's fonts


def settle() -> None:
    """Give libraries, before they are imported, a user, a home to look into, and folders that can be written.

    Some of them ask for the user's name and home when they are imported, and fail where nobody knows either.

    Raises:
        UserError: there is no folder that can be written, not even for temporary files.
    """
    try:
        getpass.getuser()
    except (KeyError, OSError):  # the second from Python 3.13 on
        os.environ["USER"] = str(os.getuid())
    try:
        home = Path.home()
    except RuntimeError:
        os.environ["HOME"] = os.sep
        home = Path(os.sep)
    cache, config = (home / name for name in (".cache", ".config"))
    if CACHE not in os.environ and not writable(cache):
        os.environ[CACHE] = str(private_folder() / "cache")
    plots = [Path(os.environ.get(CACHE) or cache), Path(os.environ.get("XDG_CONFIG_HOME") or config)]
    if PLOTS not in os.environ and not all(writable(place / "matplotlib") for place in plots):
        os.environ[PLOTS] = str(private_folder() / "matplotlib")


def writable(folder: Path) -> bool:
    """Whether files can be made in a folder, or in what is there of the way to it: tried, as rights tell too little."""
    there = next(place for place in (folder, *folder.absolute().parents) if os.path.exists(place))
    try:
        with tempfile.TemporaryFile(dir=there):
            return True
    except OSError:
        return False


def private_folder(within: Path | None = None) -> Path:
    """A folder of this user alone, always the same, among the temporary files.

    Args:
        within: the place for those; $TMPDIR, or what the system has, by default.

    Raises:
        UserError: there is no place for temporary files, or somebody else has made what lies there.
    """
    try:
        folder = (within or Path(tempfile.gettempdir())) / f"avb-{os.getuid()}"
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError as error:
        raise UserError(f"no folder for temporary files can be written: {error}. Name one with TMPDIR") from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o077:
        raise UserError(f"{folder} is not a folder of yours alone: remove it, or name another place with TMPDIR")
    return folder
