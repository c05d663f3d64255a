"""Imports go downward only, and what is heavy or unsafe is imported in one place or nowhere."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from importlib.util import resolve_name
from pathlib import Path

import pytest

import avb_service
from avb_service.provenance import SILENT

PACKAGE = Path(avb_service.__file__).parent
ROOT = "avb_service"

FLOORS = {
    "errors": 0, "trees": 0, "schema": 0, "faults": 0, "config": 0, "seeding": 0, "maths": 0, "divergences": 0,
    "provenance": 0, "formats": 0, "kinds": 0,
    "distributions": 1, "discrete": 1, "discretised": 1, "networks": 1, "bayes": 1, "optim": 1,
    "pathfinder": 1,
    "algorithm": 2,
    "algorithms": 3,
    "data": 4, "training": 4, "checkpoint": 4, "folder": 4, "storage": 4, "manifest": 4, "lock": 4,
    "places": 4,
    "records": 4,
    "likelihood": 5, "figures": 5,
    "settings": 6, "build": 6, "model": 6, "abilities": 6, "report": 6, "fitting": 6, "plan": 6,
    "scaling": 6, "recorder": 6,
    "tracking": 7, "runs": 7,
    "distributed": 8, "rows": 8, "tables": 8, "display": 8,
    "tuning": 9, "results": 9, "shown": 9, "service": 9, "testing": 9,
    "cli": 10, "": 10,
}  # fmt: skip
BASE = 6  # floors up to this one need neither ray nor mlflow
ONLY_IN = {"ray": {"distributed", "tuning"}, "mlflow": {"tracking"}}
PICKLES = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
RUN_WHAT_THEY_READ = {  # whatever is in the file
    "torch.save", "torch.load", "torch.jit.load", "torch.hub.load", "pandas.read_pickle", "yaml.load", "yaml.load_all",
    "yaml.unsafe_load", "yaml.full_load", "yaml.Loader", "yaml.FullLoader", "yaml.UnsafeLoader", "yaml.CLoader",
}  # fmt: skip
METHOD_LINES = 150


def modules() -> dict[str, Path]:
    """Dotted name below the package -> file; the package itself is ''."""
    paths = {path: path.relative_to(PACKAGE).with_suffix("").parts for path in sorted(PACKAGE.rglob("*.py"))}
    return {".".join(parts).removesuffix("__init__").removesuffix("."): path for path, parts in paths.items()}


MODULES = modules()


def unit(module: str) -> str:
    return module.split(".")[0]


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(path: Path, module: str) -> Iterator[str]:
    """Full dotted names of all that a file imports, inside of functions too."""
    tree = parsed(path)
    package = f"{ROOT}.{module}".rstrip(".") if path.name == "__init__.py" else f"{ROOT}.{module}".rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = resolve_name("." * node.level + (node.module or ""), package) if node.level else node.module or ""
            yield from (f"{base}.{alias.name}" for alias in node.names)


def own(name: str) -> str | None:
    """The module of ours that an imported name is, or is in: `avb_service.config.Config` -> `config`."""
    if name.split(".")[0] != ROOT:
        return None
    below = name.split(".")[1:]
    known = [".".join(below[:length]) for length in range(len(below), -1, -1)]
    return next(module for module in known if module in MODULES)


def own_imports(module: str) -> set[str]:
    found = (own(name) for name in imports(MODULES[module], module))
    return {name for name in found if name is not None}


def test_the_walk_sees_every_way_to_import(tmp_path):
    path = tmp_path / "module.py"
    path.write_text(
        "import ray.train as r\n"
        "from . import grids\n"
        "from ..config import Config\n"
        "if True:\n    from avb_service import model\n"
        "def f():\n    import mlflow\n"
    )
    names = ["ray.train", "avb_service.figures.grids", "avb_service.config.Config", "avb_service.model"]
    assert sorted(imports(path, "figures.canvas")) == sorted([*names, "mlflow"])
    assert [own(name) for name in names] == [None, "figures.grids", "config", "model"]


def test_every_module_has_a_floor():
    assert {unit(module) for module in MODULES} == FLOORS.keys()


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_downward_only(module):
    floor = FLOORS[unit(module)]
    upward = {name for name in own_imports(module) if FLOORS[unit(name)] > floor}
    assert not upward, f"{module} is on floor {floor} and imports {upward}"


def test_what_is_said_to_decide_no_number_is_there_and_what_computes_is_not_among_it():
    units = {unit(module) for module in MODULES}
    assert units >= SILENT
    assert not SILENT & {"maths", "distributions", "networks", "algorithms", "data", "training", "likelihood"}
    assert {name for name in units if FLOORS[name] > BASE} - {""} <= SILENT


def test_docstrings_state_the_right_floor():
    docstrings = {name: ast.get_docstring(parsed(path)) or "" for name, path in MODULES.items()}
    stated = {name: re.search(r"\bFloor (\d+)", docstring) for name, docstring in docstrings.items()}
    wrong = {name for name, found in stated.items() if found and int(found[1]) != FLOORS[unit(name)]}
    assert not wrong
    assert sum(found is not None for found in stated.values()) > len(MODULES) / 2


def test_importing_the_package_loads_nothing():
    code = "import sys, avb_service; print(*(m for m in sys.modules if m.split('.')[0] in ('avb_service', 'torch')))"
    done = subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [ROOT]


def test_no_import_cycles():
    TopologicalSorter({module: own_imports(module) - {module, ""} for module in MODULES}).prepare()


@pytest.mark.parametrize("library", ONLY_IN)
def test_heavy_libraries_have_one_place(library):
    importers = {
        module for module, path in MODULES.items() if library in {name.split(".")[0] for name in imports(path, module)}
    }
    assert {unit(module) for module in importers} <= ONLY_IN[library]


@pytest.mark.parametrize("module", MODULES)
def test_nothing_is_pickled_and_nothing_that_is_read_is_run(module):
    tree = parsed(MODULES[module])
    names = {name.split(".")[0] for name in imports(MODULES[module], module)}
    calls = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    calls |= set(imports(MODULES[module], module))  # from torch import load
    allowed_pickles = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle" and ast.unparse(node.value) != "False"
    ]
    built_in = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)} & {"eval", "exec"}
    shells = [node for node in ast.walk(tree) if isinstance(node, ast.keyword) and node.arg == "shell"]
    assert not names & PICKLES
    assert not calls & RUN_WHAT_THEY_READ
    assert not allowed_pickles
    assert not built_in
    assert not shells


def test_base_floors_run_without_ray_and_mlflow():
    """Blocked, not merely absent from the source: an import through another library would fail as well."""
    base = [f"{ROOT}.{module}" for module in MODULES if module and FLOORS[unit(module)] <= BASE]
    code = (
        "import importlib, sys\n"
        "sys.modules.update(dict.fromkeys(['ray', 'mlflow']))\n"  # None: importing it raises
        f"for name in {base!r}: importlib.import_module(name)\n"
        "from avb_service.settings import read_config\n"
        "print(read_config('vae_digits').algorithm.name)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "vae"


def test_who_looks_into_the_registry_does_not_wait_for_torch():
    code = "import sys, avb_service.cli, avb_service.tracking, avb_service.rows; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent).returncode == 0


@pytest.mark.parametrize("path", sorted((PACKAGE / "algorithms").glob("*.py")), ids=lambda path: path.stem)
def test_a_method_fits_on_three_screens(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= METHOD_LINES
