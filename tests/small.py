"""Every method of the table, as a configuration that trains in a second; several test files share it."""

from typing import Any

from avb_service.algorithm import AlgorithmConfig
from avb_service.algorithms import METHODS
from avb_service.data.datasets import DataConfig
from avb_service.settings import ExperimentConfig
from avb_service.trees import Tree, override

LARGEST = 12  # of every whole number in a method's section: widths, ranks, draws
SMALL = {
    "training": {"rounds": 4, "batch_size": 16, "report_every": 2, "logical_workers": 2},
    "likelihood": {
        "budget": "quick",
        "importance_draws": 4,
        "proposal_draws": 16,
        "elbo_draws": 2,
        "validation_data": 8,
        "test_data": 8,
        "quadrature_data": 2,
        "search": {"temperatures": 3, "chains": 4, "rest": 1, "leapfrog": 2},
    },
}
DIGITS = {"name": "digits", "validation": 16, "test": 16, "limit": 300}
DATA = ({**DIGITS, "binarisation": "dynamic"}, DIGITS, {"name": "eight_schools"})


def small_config(method: str, overrides: Tree | None = None) -> ExperimentConfig:
    """A small experiment with a method: its own defaults, narrowed, on the first bundled data that it takes."""
    section = METHODS[method].Config.parse(_narrow(METHODS[method].Config().tree()))
    tree = {"algorithm": section.tree(), "data": _data(section), **SMALL}
    for path, value in (overrides or {}).items():
        tree = override(tree, path, value)
    return ExperimentConfig.parse(tree)


def _narrow(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _narrow(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_narrow(value) for value in node]
    return min(node, LARGEST) if isinstance(node, int) and not isinstance(node, bool) else node


def _data(section: AlgorithmConfig) -> Tree:
    fitting = [tree for tree in DATA if (values := DataConfig.parse(tree).values) and not section.objection(values)]
    assert fitting, f"no bundled data fit the defaults of {section.name}"
    return {**fitting[0], "other": {**fitting[0], "seed": 1}} if section.two_sources else fitting[0]
