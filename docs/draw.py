"""Draw the pictures of docs/methods.md: `python -m docs.draw NAME`, from the root of the project.

Each trains a preset in this process and keeps some of its plots, at the end or at the rounds that are named.
"""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from avb_service.fitting import Fit
from avb_service.report import OBJECTIVE, OF_DRAWS
from avb_service.settings import read_config

SHOWN = (OBJECTIVE, OF_DRAWS, "validation/modes_found", "validation/good_draws")
FOLDER = Path(__file__).parent / "pictures"


@dataclass(frozen=True)
class Drawing:
    """What is trained, and what is drawn of it.

    Attributes:
        preset: trained with the assignments.
        plots: by their names in `figures.draw`.
        rounds: when; at the end where none are given.
        assignments: as for `--set`.
    """

    preset: str
    plots: tuple[str, ...]
    rounds: tuple[int, ...] = ()
    assignments: tuple[str, ...] = ()

    def file(self, name: str, plot: str, step: int | None) -> str:
        """Of a plot at a round: `NAME_PLOT.png`, with the round where there are several."""
        return f"{name}_{plot}{f'_{step}' if self.rounds else ''}.png"


class Album:
    """A recorder that keeps the plots of a drawing, and shows how far training is."""

    def __init__(self, name: str, drawing: Drawing) -> None:
        self.name, self.drawing = name, drawing
        self.pages: dict[str, bytes] = {}

    def log_metrics(self, metrics: Mapping[str, float], step: int, tags: Mapping[str, str] | None = None) -> None:
        """Shown, not kept."""
        shown = ", ".join(f"{key} {metrics[key]:.3f}" for key in SHOWN if key in metrics)
        Console().print(f"{self.name}  round {step}  {shown}")

    def log_figure(self, name: str, picture: bytes, step: int | None = None) -> None:
        """Kept, if the drawing has it."""
        if name in self.drawing.plots and (not self.drawing.rounds or step in self.drawing.rounds):
            self.pages[self.drawing.file(self.name, name, step)] = picture

    def close(self) -> None:
        """Write them, when training has come to its end."""
        for name, picture in self.pages.items():
            (FOLDER / name).write_bytes(picture)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Not kept."""


DRAWINGS = {
    "vae_onehot4": Drawing("vae_onehot4", ("latents",)),
    "avb_onehot4": Drawing("avb_onehot4", ("latents",)),
    "avb_ac_onehot4": Drawing("avb_ac_onehot4", ("latents",)),
    "avb_onehot8": Drawing("avb_onehot4", ("latents",), assignments=("data.name=onehot-8",)),
    "avb_binary8": Drawing("avb_onehot4", ("latents",), assignments=("data.name=binary-8",)),
    "avb_ac_mnist2": Drawing(
        "avb_ac_mnist", ("latents", "manifold", "interpolation"), (500, 2000, 8000),
        ("algorithm.latent_dim=2", "training.rounds=8000", "training.report_every=500"),
    ),
    "avb_ac_mnist10": Drawing(
        "avb_ac_mnist", ("latents", "traversal"),
        assignments=("algorithm.latent_dim=10", "training.rounds=6000", "training.report_every=2000"),
    ),
    "ali_digits": Drawing("ali_digits", ("samples", "reconstructions")),
    "aae_digits2": Drawing("aae_digits", ("latents",), assignments=("algorithm.latent_dim=2",)),
    "ae_gmm_digits": Drawing("ae_gmm_digits", ("samples",)),
    "ae_gmm_digits2": Drawing("ae_gmm_digits", ("latents",), assignments=(
        "algorithm.latent_dim=2", "algorithm.mixture.components=10",
    )),
    "bernoulli_vae_digits": Drawing("bernoulli_vae_digits", ("samples", "latents")),
    "flow_vae_digits": Drawing("flow_vae_digits", ("latents",)),
    "infogan_mnist": Drawing("infogan_mnist", ("codes",)),
    "cyclegan_digits_mnist": Drawing("cyclegan_digits_mnist", ("cycles",)),
    **{name: Drawing(name, ("samples",)) for name in (
        "gan_gaussians8", "gan_gaussians25", "lsgan_gaussians8", "gan_digits", "lsgan_digits", "f_gan_digits",
        "gumbel_vae_digits", "iaf_vae_digits", "iwae_digits", "vq_vae_digits",
        "sbn_mean_field_digits", "sbn_wake_sleep_digits",
    )},
    "gan_gaussians8_collapsed": Drawing(
        "gan_gaussians8", ("samples",), assignments=("algorithm.penalty=0", "algorithm.adversary.steps=5")
    ),
}  # fmt: skip


def main(names: Annotated[list[str], typer.Argument(help=", ".join(DRAWINGS))]) -> None:
    """Train and draw."""
    if unknown := [name for name in names if name not in DRAWINGS]:
        raise typer.BadParameter(f"{', '.join(unknown)}: names are {', '.join(DRAWINGS)}")
    for name in names:
        drawing, album = DRAWINGS[name], Album(name, DRAWINGS[name])
        config = read_config(drawing.preset, [*drawing.assignments, "tracking.plots_every=1"])
        with tempfile.TemporaryDirectory() as folder:
            Fit(config, Path(folder), recorder=album).run()
        album.close()


if __name__ == "__main__":
    typer.run(main)
