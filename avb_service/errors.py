"""Errors that a user can mend.

Floor 0. Everything that is the user's to put right is raised as a `UserError`: the command line prints its
message alone and leaves with exit code 2; any other exception is a defect of ours and keeps its traceback.
"""

from collections.abc import Sequence


def listed(names: Sequence[object], shown: int = 3) -> str:
    """The first names and how many more there are, in one line whatever characters they have and however many."""
    first = (_shortened(_on_one_line(str(name))) for name in names[:shown])
    more = [f"{len(names) - shown} more"] if len(names) > shown else []
    return " and ".join([", ".join(first), *more])


def _shortened(name: str) -> str:
    return name if len(name) <= 200 else f"{name[:90]}...{name[-90:]}"


def _on_one_line(text: str) -> str:
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)


class UserError(Exception):
    """Something that was given cannot be used; the message says what, what was expected and what to do."""

    exit_code = 2

    def _render_traceback_(self) -> list[str]:
        """What a notebook shows: the message alone, as the command line does."""
        return [f"{type(self).__name__}: {self}"]


class ConfigError(UserError):
    """A configuration that cannot be run. Carries every problem found, not only the first.

    Args:
        problems: one line each, beginning with the dotted path that it is about; what would break a line is escaped.
        source: the file or preset that was read, for the message.
    """

    def __init__(self, problems: list[str], source: str = "configuration") -> None:
        self.problems, self.source = [_on_one_line(problem) for problem in problems], source
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        super().__init__("\n".join([f"{source}: {count}", *(f"  {problem}" for problem in self.problems)]))

    def __reduce__(self) -> tuple[type["ConfigError"], tuple[list[str], str]]:
        """It travels between processes with its problems, and not as the message that these make."""
        return type(self), (self.problems, self.source)


class DivergenceError(UserError):
    """Training produced a value that is not finite; the last good state is in the checkpoint folder.

    Args:
        message: what was not finite.
        player: whose step was not taken for it; none where a model could not be evaluated.
        round_: of that step, which may be noticed later.
    """

    exit_code = 1

    def __init__(self, message: str, player: str | None = None, round_: int | None = None) -> None:
        self.player, self.round = player, round_
        super().__init__(message)


class Interrupted(UserError):
    """Somebody stopped the work before its end; it can be continued."""

    exit_code = 130


class TakenOverError(UserError):
    """Somebody else owns by now what this process was at work on; it must not write there any more."""


class DataError(UserError):
    """Data that is missing, damaged, or not of the kind that was declared."""
