"""Distributed training of latent-variable generative models, with log-likelihoods that can be believed.

    import avb_service

    avb_service.train("vae_digits", {"training.rounds": 500})
    avb_service.leaderboard()
    model = avb_service.load("models:/vae-digits@champion")

Each function is imported when it is asked for, so that importing the package costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from avb_service.service.about import datasets, methods
    from avb_service.service.given import certify, record
    from avb_service.service.models import leaderboard, load, promote, pull, register
    from avb_service.service.scoring import compare, evaluate, plots
    from avb_service.service.training import search, train, tune

__all__ = [
    "certify",
    "compare",
    "datasets",
    "evaluate",
    "leaderboard",
    "load",
    "methods",
    "plots",
    "promote",
    "pull",
    "record",
    "register",
    "search",
    "train",
    "tune",
]
_HOMES = {
    "about": ("datasets", "methods"),
    "given": ("certify", "record"),
    "models": ("leaderboard", "load", "promote", "pull", "register"),
    "scoring": ("compare", "evaluate", "plots"),
    "training": ("search", "train", "tune"),
}


def __getattr__(name: str) -> Any:  # noqa: ANN401  a function
    home = next((home for home, names in _HOMES.items() if name in names), None)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.service.{home}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
