"""The tour of the documentation, in a real Jupyter kernel: it runs, shows what it says, and leaves nothing behind."""

import os
from pathlib import Path

import jupytext
import pytest
from nbclient import NotebookClient
from nbformat import NotebookNode

ROOT = Path(__file__).parents[2]
TEXT, NOTEBOOK = ROOT / "docs" / "tour.md", ROOT / "docs" / "tour.ipynb"
LIMIT = 600_000  # bytes of a notebook that is kept with its pictures

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:(jupyter_client|nbclient|nbformat|zmq|tornado).*")


def code(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def said(notebook: NotebookNode, of: str) -> str:
    """What the cells that contain a piece of code have shown, as text."""
    outputs = [output for cell in code(notebook) if of in cell.source for output in cell.outputs]
    return "".join(output.get("text", "") + output.get("data", {}).get("text/plain", "") for output in outputs)


def pictures(notebook: NotebookNode, of: str) -> int:
    outputs = [output for cell in code(notebook) if of in cell.source for output in cell.outputs]
    shown = [output.get("data", {}) for output in outputs]
    return sum("image/png" in data or "data:image/png" in data.get("text/html", "") for data in shown)


@pytest.fixture(scope="module")
def executed(tmp_path_factory) -> tuple[NotebookNode, Path]:
    """The tour as a kernel with folders of its own has executed it, and the folder that it ran in."""
    place = tmp_path_factory.mktemp("tour")
    for name in ("here", "tmp", "home"):
        (place / name).mkdir()
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_AUTH", "MLFLOW_TRACKING"))}
    environment = {
        **kept,
        "RAY_ADDRESS": "local",  # a cluster that happens to run on this machine is not ours to use
        "PYTHONPATH": str(ROOT),
        "HOME": str(place / "home"),
        "TMPDIR": str(place / "tmp"),
    }
    environment.pop("RAY_TMPDIR", None)
    notebook = jupytext.read(TEXT)
    client = NotebookClient(
        notebook, timeout=900, kernel_name="python3", resources={"metadata": {"path": str(place / "here")}}
    )
    client.execute(env=environment)
    return notebook, place


def test_text_and_notebook_are_in_step():
    text, notebook = (jupytext.read(path) for path in (TEXT, NOTEBOOK))
    cells = [[(cell.cell_type, cell.source) for cell in each.cells] for each in (text, notebook)]
    assert cells[0] == cells[1], "run `jupytext --sync docs/tour.md`, and execute the notebook where code has changed"


def test_the_notebook_is_kept_with_its_results():
    notebook = jupytext.read(NOTEBOOK)
    assert [cell.execution_count for cell in code(notebook)] == [*range(1, 1 + len(code(notebook)))]
    assert NOTEBOOK.stat().st_size < LIMIT
    assert pictures(notebook, "") >= 4 and str(Path.home()) not in NOTEBOOK.read_text()


def test_it_shows_what_it_says(executed):
    notebook, _ = executed
    assert "tour-vae  round   1500" in said(notebook, "vae =") and "models:/vae-digits/1" in said(notebook, "vae =")
    assert "models:/avb-digits/1" in said(notebook, "avb =")
    for drawn in ('pictures["samples"]', 'pictures["latents"]', "imshow", "evaluate(", '["manifold"]'):
        assert pictures(notebook, drawn) == 1, drawn
    assert "nats per datum by ais on 100 data" in said(notebook, "compare(")
    assert "Certificate of ais: " in said(notebook, "evaluate(")
    assert "models:/digits-on-a-plane/1 is champion" in said(notebook, "register(")
    assert "quadrature" in said(notebook, "log_likelihood(digits)")


def test_nothing_is_said_that_is_no_result(executed):
    notebook, _ = executed
    outputs = [output for cell in code(notebook) for output in cell.outputs]
    assert [output.text for output in outputs if output.get("name") == "stderr"] == []
    assert "\x1b" not in "".join(output.get("text", "") for output in outputs)


def test_it_leaves_nothing_behind(executed):
    _, place = executed
    assert [*(place / "here").iterdir()] == [] and not (place / "home" / ".ray").exists()
    assert [*(place / "tmp").glob("avb-tour-*")] == []
