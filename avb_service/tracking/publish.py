"""From a trained model to the registry: scored on held-out data, described, and promoted or not.

Floor 7.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from avb_service.experiment import Experiment
from avb_service.likelihood import Estimate
from avb_service.tracking.registry import leaderboard, register
from avb_service.tracking.runs import Run

CHAMPION, CHALLENGER = "champion", "challenger"
HELD_OUT = "test/log_likelihood"  # a lower bound, of the same kind as the validation figure that it stands beside
COMPARABLE = "comparable"


@dataclass(frozen=True)
class Published:
    """A model in the registry.

    Attributes:
        uri: `models:/NAME/VERSION`.
        alias: champion or challenger; None for what was not a candidate.
        reason: why it has that alias.
        metrics: its held-out likelihoods.
    """

    uri: str
    alias: str | None
    reason: str
    metrics: Mapping[str, float]


def publish(experiment: Experiment, run: Run, folder: Path, candidate: bool = True) -> Published:
    """Score the best checkpoint on held-out data and register it.

    Args:
        experiment: whose store holds the checkpoints.
        run: where it was recorded.
        folder: to write the model folder to.
        candidate: whether it may become champion.

    Raises:
        UserError: there is no checkpoint, or the registry refuses.
    """
    round_ = experiment.load_best()
    estimates = experiment.evaluate("test")
    metrics = {name: value for estimate in estimates for name, value in estimate.metrics("test").items()}
    if estimates:
        metrics[HELD_OUT] = estimates[0].value
    tags = {**experiment.tags(), COMPARABLE: _comparable(experiment, estimates)}
    for estimate in estimates:
        values = estimate.per_datum.tolist()
        run.log_table(f"test_log_likelihood.{estimate.name}", {"datum": list(range(len(values))), "nats": values})
    experiment.record_figures(run)
    model = experiment.config.tracking.model
    alias, reason = _promotion(model, metrics.get(HELD_OUT), tags, run.tracking_uri) if candidate else (None, "")
    experiment.publish(folder, card(experiment, estimates))
    version = register(
        model, folder, run.run_id, step=round_, aliases=[alias] if alias else [], metrics=metrics,
        tags={**tags, "promotion": reason}, uri=run.tracking_uri,
    )  # fmt: skip
    run.finish()
    return Published(f"models:/{model}/{version}", alias, reason, metrics)


def card(experiment: Experiment, estimates: Sequence[Estimate]) -> str:
    """What a reader should know of the model, Markdown."""
    config, tags = experiment.config, experiment.tags()
    rows = [
        f"| {e.name} | {e.value:.2f} ± {e.stderr:.2f} | {e.kind.replace('_', ' ')} | {len(e.per_datum)} |"
        for e in estimates
    ]
    return f"""# {config.tracking.model}

{type(experiment.algorithm).__name__}, {tags["parameters"]} parameters, latent size {tags["latent_dim"]}, trained for
{tags["rounds"]} rounds ({tags["train_seconds"]} s) on {config.data.name} (binarisation: {config.data.binarisation},
sha256 {tags["data_sha256"][:12]}) by code {tags["code"]}.

Log-likelihood of held-out data, nats per datum; ± is the standard error over data:

| estimator | value | kind | data |
|---|---|---|---|
{chr(10).join(rows)}

```python
import avb_service
model = avb_service.load("models:/{config.tracking.model}@champion")
images = model.sample(16, seed=0)
```
"""


def _comparable(experiment: Experiment, estimates: Sequence[Estimate]) -> str:
    """Two held-out figures can be compared where this is equal: same data, binarisation, noise and estimator."""
    config = experiment.config
    first = (estimates[0].name, len(estimates[0].per_datum)) if estimates else ()
    basis = (experiment.dataset.sha256, config.data.binarisation, config.likelihood.seed, *first)
    return hashlib.sha256(repr(basis).encode()).hexdigest()[:16]


def _promotion(model: str, value: float | None, tags: Mapping[str, str], uri: str) -> tuple[str, str]:
    """Champion or challenger, and why."""
    if value is None:
        return CHALLENGER, "it defines no p(x|z), so it has no held-out likelihood"
    champion = next((row for row in leaderboard(uri) if row.name == model and CHAMPION in row.aliases), None)
    if champion is None:
        return CHAMPION, "the first of its name"
    if champion.tags.get(COMPARABLE) != tags[COMPARABLE]:
        return CHALLENGER, f"{champion.uri} was scored on other data or by another estimator; compare them by hand"
    best = champion.metrics[HELD_OUT]
    if value > best:
        return CHAMPION, f"{value:.3f} against {best:.3f} nats per datum of {champion.uri}"
    return CHALLENGER, f"{value:.3f} does not beat {best:.3f} nats per datum of {champion.uri}"
