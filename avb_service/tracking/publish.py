"""From a trained model to the registry: scored on held-out data, described, and promoted or not.

Floor 7.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from avb_service.experiment import Experiment
from avb_service.likelihood import Estimate
from avb_service.tracking.registry import leaderboard, register
from avb_service.tracking.runs import Run

CHAMPION, CHALLENGER = "champion", "challenger"
HELD_OUT = "test/log_likelihood"  # a lower bound, like the validation figure that it stands beside


@dataclass(frozen=True)
class Published:
    """A model in the registry.

    Attributes:
        uri: `models:/NAME/VERSION`.
        alias: champion or challenger; None for what was not a candidate.
        metrics: its held-out likelihoods.
    """

    uri: str
    alias: str | None
    metrics: Mapping[str, float]


def publish(experiment: Experiment, run: Run, folder: Path, candidate: bool = True) -> Published:
    """Score the best checkpoint on held-out data and register it.

    Args:
        experiment: whose store holds the checkpoints.
        run: where it was recorded.
        folder: to write the model folder to.
        candidate: whether it may become champion.
    """
    round_ = experiment.load_best()
    estimates = experiment.evaluate("test")
    metrics = {HELD_OUT: estimates[0].value}
    for estimate in estimates:
        metrics |= estimate.metrics("test")
    tags = {**experiment.tags(), "likelihood_data": f"{len(estimates[0].per_datum)} test data"}
    run.log_metrics(metrics, experiment.config.training.rounds)
    run.log_table("test_log_likelihoods", {e.name: e.per_datum.tolist() for e in estimates})
    experiment.record_figures(run)
    model = experiment.config.tracking.model
    alias = _alias(model, metrics[HELD_OUT], tags["data_sha256"], run.tracking_uri) if candidate else None
    experiment.publish(folder, card(experiment, estimates))
    version = register(
        model, folder, run.run_id, step=round_, aliases=[alias] if alias else [], metrics=metrics, tags=tags,
        uri=run.tracking_uri,
    )  # fmt: skip
    run.finish()
    return Published(f"models:/{model}/{version}", alias, metrics)


def card(experiment: Experiment, estimates: list[Estimate]) -> str:
    """What a reader should know of the model, Markdown."""
    config, tags = experiment.config, experiment.tags()
    rows = [
        f"| {e.name} | {e.value:.2f} ± {e.stderr:.2f} | {e.kind.replace('_', ' ')} | {len(e.per_datum)} |"
        for e in estimates
    ]
    return "\n".join(
        [
            f"# {config.tracking.model}",
            "",
            f"{type(experiment.algorithm).__name__}, {tags['parameters']} parameters, latent size "
            f"{tags['latent_dim']}, trained for {tags['rounds']} rounds ({tags['train_seconds']} s) on "
            f"{config.data.name} (binarisation: {config.data.binarisation}, sha256 {tags['data_sha256'][:12]}).",
            "",
            "Log-likelihood of held-out data, nats per datum; ± is the standard error over data:",
            "",
            "| estimator | value | kind | data |",
            "|---|---|---|---|",
            *rows,
            "",
            "```python",
            "import avb_service",
            f'model = avb_service.load("models:/{config.tracking.model}@champion")',
            "images = model.sample(16, seed=0)",
            "```",
            "",
        ]
    )


def _alias(model: str, value: float, data: str, uri: str) -> str:
    """Champion, unless the present champion is better on the same data."""
    for row in leaderboard(uri):
        if row.name == model and CHAMPION in row.aliases and row.tags.get("data_sha256") == data:
            return CHAMPION if value > row.metrics[HELD_OUT] else CHALLENGER
    return CHAMPION
