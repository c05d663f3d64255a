"""What a model of somebody else is worth: given by its densities, in torch, and scored in this process.

Floor 9. It needs no configuration, no run, no Ray and no MLflow.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from avb_service.display import Display
from avb_service.results import Evaluation
from avb_service.service.models import load, prepare

if TYPE_CHECKING:
    from torch import Tensor
    from torch.distributions import Distribution

    from avb_service.data.inputs import Given
    from avb_service.likelihood import Budget, Evaluator, LikelihoodConfig
    from avb_service.likelihood.given import Network, Observation, Posterior
    from avb_service.model import Model
    from avb_service.records import LikelihoodRecord


def certify(
    likelihood: "Callable[[Tensor], Distribution | Tensor]",
    prior: "Distribution",
    posterior: "Posterior | None" = None,
    *,
    x: "Given | str | Path | Model",
    observation: "Observation | None" = None,
    scale: float | None = None,
    estimators: Sequence[str] = (),
    budget: "Budget | None" = None,
    changes: Mapping[str, Any] | None = None,
    name: str = "given model",
    data: str = "x",
    display: Display | None = None,
) -> Evaluation:
    """Log-likelihoods of data under any decoder, in nats per datum, each with its kind and error, and a certificate.

    Args:
        likelihood: codes [..., D] -> p(x|z), a torch distribution with batch shape [...] and event shape that of a
            datum; or, with `observation`, a network: codes [N, D] -> outputs [N, ...] in the shape of the data.
        prior: p(z), a torch distribution with event shape [D], such as a zuko flow, called.
        posterior: data [B, ...] -> q(z|x), a torch distribution with batch shape [B] and event shape [D], where there
            is one. A q(z|x) without a density is known by its draws.
        x: data [n, ...]; or a model, as `load` takes it, whose test data are scored, so that both can be compared.
        observation: bernoulli, where a network gives logits of binary data; gaussian, where it gives means.
        scale: standard deviation of the Gaussian noise, in the units of the data.
        estimators: only these, by name.
        budget: certified unless given; standard leaves the certificate out, and quick the annealing.
        changes: of the `likelihood` section, by path: {"ais.temperatures": 200}.
        name: of the model, for tables and plots.
        data: what to call the data.
        display: as for `train`.

    Raises:
        UserError: what was given does not fit together; says what, before anything expensive starts. No such estimator,
            budget or setting.

    Source: Wu et al. 2017, "On the quantitative analysis of decoder-based generative models", and Grosse, Ancha & Roy
        2016, "Measuring the reliability of MCMC inference", for the certificate.
    """
    prepare()
    from avb_service.errors import UserError
    from avb_service.likelihood import Evaluator, Observed, given_model
    from avb_service.likelihood.needs import measure
    from avb_service.model import Model
    from avb_service.report import basis

    if estimators and budget:
        raise UserError("a budget buys estimators, and `estimators` names them one by one: give either")
    if observation is None and scale is not None:
        raise UserError(f"scale: given {scale} without observation='gaussian', whose noise it is")
    config = _settings(changes, budget)
    source = load(x).with_data() if isinstance(x, str | Path | Model) else None
    decoder: Any = likelihood if observation is None else Observed(cast("Network", likelihood), observation, scale)
    given = cast("Given", x) if source is None else source.data("test")[0]
    model, scored = given_model(decoder, prior, posterior, given)
    on = {"data_sha256": _digest(scored), "measure": measure(model)} if source is None else basis(source, model)
    with (display or Display()).scoring() as progress:
        record = _scored(Evaluator(model, config, progress=progress), scored, estimators, on)
    return Evaluation(name, data if source is None else source.config.data.name, len(scored), record, name)


def _scored(
    evaluator: "Evaluator", x: "Tensor", estimators: Sequence[str], basis: Mapping[str, str]
) -> "LikelihoodRecord":
    """What was asked for: some estimators by name, which all have to fit the model before any begins; or a budget."""
    from avb_service.records import LikelihoodRecord

    if not estimators:
        return evaluator.assess(x, evaluator.config.budget, basis)
    for each in estimators:
        evaluator.require(each)
    return LikelihoodRecord(basis, tuple(evaluator.score(each, x) for each in estimators))


def record(evaluation: Evaluation, *, experiment: str = "external") -> str:
    """Keep in MLflow what `certify` has found: a run with the record, a card, every datum's numbers and a plot.

    The leaderboard shows it, under the method `external`. It is no registered model, so it never becomes champion.

    Args:
        evaluation: by `certify`.
        experiment: MLflow's; made if it does not exist.

    Returns:
        runs:/ID, which `compare` takes.

    Raises:
        UserError: it is an evaluation of a model of this package, which is registered with its likelihoods; or MLflow
            refuses.
    """
    prepare()
    from avb_service.errors import UserError
    from avb_service.figures import to_png
    from avb_service.tracking import check_server, keep

    if not evaluation.record.basis:
        raise UserError(
            f"the evaluation of {evaluation.model} is no other's: `register` keeps a model with its likelihoods"
        )
    picture = to_png(evaluation.plot())
    return keep(evaluation.model, evaluation.data, evaluation.record, experiment, picture, check_server())


def _settings(changes: Mapping[str, Any] | None, budget: "Budget | None") -> "LikelihoodConfig":
    """The defaults of the section with what is changed on top."""
    from avb_service.likelihood import LikelihoodConfig
    from avb_service.trees import flatten, overridden

    asked = {} if budget is None else {"budget": budget}
    return LikelihoodConfig.parse(overridden(LikelihoodConfig().tree(), {**flatten(changes or {}), **asked}), "changes")


def _digest(x: "Tensor") -> str:
    """Of data, whatever their shape and precision."""
    return hashlib.sha256(x.flatten(1).float().cpu().contiguous().numpy().tobytes()).hexdigest()
