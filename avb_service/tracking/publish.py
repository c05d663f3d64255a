"""From a trained model to the registry: scored on held-out data, certified, described, and promoted or not.

Floor 7.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from avb_service.algorithms import METHODS
from avb_service.errors import UserError
from avb_service.manifest import fingerprint
from avb_service.model import Model
from avb_service.recorder import record_plots
from avb_service.records import LikelihoodRecord
from avb_service.report import bounds_plot, elbo_surgery, objective_of, plots
from avb_service.report import tags as tags_of
from avb_service.settings import ExperimentConfig
from avb_service.tracking.card import labels, likelihoods, log_columns, numbers
from avb_service.tracking.promotion import REASON, award, versions_of
from avb_service.tracking.registry import CONTENT, register
from avb_service.tracking.runs import Run, check_experiment


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


def publish(
    model: Model, run: Run, folder: Path, candidate: bool = True, check: Callable[[], None] = lambda: None
) -> Published:
    """Register an assessed model; make it champion if it has earned that. What is registered already stays as it is.

    Args:
        model: as its training has left it, with its data and its likelihood.
        run: where it was recorded.
        folder: to write the model folder to.
        candidate: whether it may become champion.
        check: raises where the run is another's by now; asked before anything is written.

    Raises:
        UserError: the registry refuses.
    """
    check()
    name, uri, record = model.config.tracking.model, run.tracking_uri, model.record
    metrics = numbers(record)
    replace(model, card=card(model, record, run.run_id)).write(folder)
    content = fingerprint(folder)
    mine = (row for row in versions_of(name, uri) if row.run_id == run.run_id and row.tags.get(CONTENT) == content)
    before = next(mine, None)  # by a call that was cut off
    if before is None:
        _show(model, record, run)
    given = before.aliases if before else ()
    alias, reason = (given[0], before.tags[REASON]) if before and given else (None, "not a candidate")
    tags = {
        **tags_of(model),
        CONTENT: content,
        **({} if candidate and not given else {REASON: reason}),
        **labels(record),
    }
    check()
    version = register(
        name,
        folder,
        run.run_id,
        step=model.round or 0,
        metrics=metrics,
        tags=tags,
        version=before.version if before else None,
        uri=uri,
    )
    if candidate and not given:
        alias, reason = award(name, version, record, uri, check)
    return Published(f"models:/{name}/{version}", alias, reason, metrics)


def _show(model: Model, record: LikelihoodRecord, run: Run) -> None:
    """Record what was found of the model in its run: tables, plots; its metrics are the registered model's."""
    log_columns(record, run)
    record_plots(run, plots(model))
    run.log_metrics(elbo_surgery(model), model.round or 0)
    if bounding := [estimate for estimate in record.estimates if estimate.quantity != "parzen_density"]:
        record_plots(run, {"bounds": bounds_plot(bounding, record.certificate, model.subject)})


def check_names(config: ExperimentConfig, uri: str | None = None) -> None:
    """Make sure that a run may be recorded, and a model registered, under the names given, before it is trained.

    Args:
        config: of the model.
        uri: where, as `tracking_uri` reads it.

    Raises:
        UserError: the experiment was deleted; or models of another kind have that name, so that no champion could be
            chosen among them.
    """
    check_experiment(config.tracking.experiment, uri)
    name, method = config.tracking.model, config.algorithm.name
    for row in versions_of(name, uri):
        others = row.tags.get("method"), row.tags.get("data")
        if None in others:
            kind = "was not registered by this service"
        elif others[1] != config.data.name:
            kind = f"is a model of other data, {others[1]}, and not of {config.data.name}"
        elif others[0] in METHODS and objective_of(str(others[0])) != objective_of(method):
            kind = f"is a {others[0]}, which is not compared by the same estimate as {method}"
        else:
            continue
        raise UserError(f"the name {name!r} is taken: {row.uri} {kind}. Choose another with tracking.model")


def card(model: Model, record: LikelihoodRecord, run_id: str) -> str:
    """What a reader should know of the model, Markdown.

    Args:
        model: as its training has left it, with its data.
        record: from `report.assess`.
        run_id: under which it can be loaded; an alias moves on, and its version is not known before it is registered.
    """
    config, tags = model.config, tags_of(model)
    taken = f" ({model.progress.seconds:.1f} s)" if model.progress else ""
    return f"""# {config.tracking.model}

{type(model.algorithm).__name__}, {tags["parameters"]} parameters, latent size {tags["latent_dim"]}, trained for
{model.round} rounds{taken} on {config.data.name} (binarisation: {config.data.binarisation},
sha256 {tags["data_sha256"][:12]}) by code {tags["code"]}.

{likelihoods(record)}

```python
import avb_service
model = avb_service.load("runs:/{run_id}/{config.tracking.model}")
images = model.sample(16, seed=0)
```
"""
