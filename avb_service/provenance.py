"""Which code made a result, by what it computes.

Floor 0. Two results may stand beside each other, and a search go on, where the code that decides their numbers is the
same: formulas, seeds, the order of operations. How it is commented, what it says to people, how it keeps and shows what
it has computed: that may change.
"""

import ast
import hashlib
import re
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import MappingProxyType

# What reads, keeps, shows, sends or says, and decides no number.
SILENT = frozenset(
    {
        "abilities",
        "checkpoint",
        "cli",
        "config",
        "display",
        "distributed",
        "errors",
        "faults",
        "figures",
        "folder",
        "formats",
        "kinds",
        "lock",
        "manifest",
        "places",
        "plan",
        "provenance",
        "recorder",
        "results",
        "rows",
        "runs",
        "scaling",
        "schema",
        "service",
        "settings",
        "shown",
        "storage",
        "tables",
        "testing",
        "tracking",
        "trees",
        "tuning",
    }
)
BY_BYTES = re.compile(r"[^+]*\+[0-9a-f]{12}")  # how earlier versions named a code: by every byte of all files


def code_version(packages: Mapping[str, str] = MappingProxyType({})) -> str:
    """The code that decides numbers: ours, and what other packages have added, the same wherever it is installed.

    Args:
        packages: theirs, name to version.
    """
    return " with ".join([_own_version(), *(f"{name} {number}" for name, number in packages.items())])


@cache
def _own_version() -> str:
    """The package's version and a hash of what its code computes."""
    package = Path(__file__).parent
    sources = {source.relative_to(package).as_posix(): source.read_text("utf-8") for source in package.rglob("*.py")}
    try:
        number = version("avb-service")
    except PackageNotFoundError:
        number = "uninstalled"
    return f"{number}+n{computes(sources)[:12]}"


def computes(sources: dict[str, str]) -> str:
    """A hash of what sources compute: without comments, docstrings and the words of refusals.

    Python's own account of a program differs a little from one minor version to the next, and so does the hash.

    Args:
        sources: by path below the package; those of SILENT are left out.
    """
    digest = hashlib.sha256()
    for path, source in sorted(sources.items()):
        if path.partition("/")[0].removesuffix(".py") not in SILENT:
            digest.update(path.encode() + b"\0" + ast.dump(_Bare().visit(ast.parse(source))).encode() + b"\0")
    return digest.hexdigest()


def same_numbers(before: str, now: str) -> bool | None:
    """Whether two codes, as `code_version` names them, compute the same; None where nobody can tell.

    Args:
        before: also of an earlier version, which named a code by every byte of all files.
        now: of this one.
    """
    if BY_BYTES.fullmatch(before):
        return None
    return before.partition("+")[2] == now.partition("+")[2]


class _Bare(ast.NodeTransformer):
    """Takes out of a program what it says to people."""

    def visit_Expr(self, node: ast.Expr) -> ast.Expr | None:
        """A text that stands by itself is a docstring."""
        is_text = isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        return None if is_text else node

    def visit_Raise(self, node: ast.Raise) -> ast.Raise:
        """What kind of refusal it is, and not its words."""
        return ast.Raise(node.exc.func if isinstance(node.exc, ast.Call) else node.exc, None)
