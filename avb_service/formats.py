"""The number of the format that is written to disk: model folders, checkpoints, jobs, searches, records.

Floor 0. What was written before formats were counted is of format 0. Who reads a kind of file or folder brings older
ones up to date, by a small function from each format to the next.
"""

from pathlib import Path

from avb_service.errors import DataError

KEY = "format"
FORMAT = 1


def known_format(tree: object, where: Path | str) -> int:
    """The format that a file says of itself, known to be none of a later release.

    Raises:
        DataError: it is.
    """
    given = tree.get(KEY, 0) if isinstance(tree, dict) else 0
    if not isinstance(given, int) or given > FORMAT:
        raise DataError(
            f"{where} is of format {given}, which a later release has written; this one knows formats up to {FORMAT}: "
            "install the newest avb-service"
        )
    return given
