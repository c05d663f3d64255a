"""Which code made a result.

Floor 0.
"""

import hashlib
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


@cache
def code_version() -> str:
    """The package's version and a hash of its sources: the same wherever the same code is installed."""
    package = Path(__file__).parent
    digest = hashlib.sha256()
    for source in sorted(package.rglob("*.py")):
        digest.update(source.relative_to(package).as_posix().encode() + b"\0" + source.read_bytes())
    try:
        number = version("avb-service")
    except PackageNotFoundError:
        number = "uninstalled"
    return f"{number}+{digest.hexdigest()[:12]}"
