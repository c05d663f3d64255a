"""Whether this Python has what the project needs; names what is missing and exits with 1 where it has not."""

import sys
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path


def missing(pyproject: Path) -> list[str]:
    """The requirements that are not met."""
    import tomllib

    from packaging.requirements import Requirement

    def met(need: Requirement) -> bool:
        try:
            fits = need.specifier.contains(version(need.name), prereleases=True)
        except PackageNotFoundError:
            return False
        more = [Requirement(line) for line in requires(need.name) or []] if need.extras else []
        wanted = [
            each
            for each in more
            if each.marker
            and not each.marker.evaluate({"extra": ""})
            and any(each.marker.evaluate({"extra": extra}) for extra in need.extras)
        ]
        return fits and all(met(each) for each in wanted)

    lines = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]["dependencies"]
    return [line for line in lines if not met(Requirement(line))]


if __name__ == "__main__":
    try:
        lacks = missing(Path(__file__).parents[1] / "pyproject.toml")
    except ImportError as error:
        lacks = [error.name or str(error)]
    if lacks:
        sys.exit(f"{sys.executable} lacks {', '.join(lacks)}")
