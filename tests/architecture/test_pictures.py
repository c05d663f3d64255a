"""Every picture of a method is there, and is made by a command that the documents name."""

import re
from pathlib import Path

from avb_service.algorithms import METHODS as OURS
from avb_service.settings import read_config
from docs.draw import DRAWINGS, FOLDER

METHODS = (Path(__file__).parents[2] / "docs" / "methods.md").read_text()
SHOWN = set(re.findall(r"\]\(pictures/([^)]+)\)", METHODS))


def test_every_picture_of_a_method_is_made_by_a_command_and_there():
    by_draw = {
        drawing.file(name, plot, step)
        for name, drawing in DRAWINGS.items()
        for plot in drawing.plots
        for step in drawing.rounds or [None]
    }
    by_benchmarks = set(re.findall(r"--(?:picture|plot)\s+docs/pictures/(\S+\.png)", METHODS))
    assert len(SHOWN) > 30
    assert not SHOWN - by_draw - by_benchmarks
    assert SHOWN <= {path.name for path in FOLDER.iterdir()}


def test_every_method_has_a_picture():
    """Of one it is a benchmark's, which sets it beside a long run of another method."""
    shown = {name for name in DRAWINGS if any(picture.startswith(f"{name}_") for picture in SHOWN)}
    assert shown == DRAWINGS.keys()
    assert OURS.own.keys() - {read_config(DRAWINGS[name].preset).algorithm.name for name in shown} == {"avb_joint"}
