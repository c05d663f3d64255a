"""The estimators by name, and which of them a budget buys.

Floor 5.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from avb_service.algorithm import AdversarialModel, Algorithm, DecodingModel, JointDensity
from avb_service.data.inputs import Given
from avb_service.errors import UserError
from avb_service.kinds import Table
from avb_service.likelihood.adversary import can_be_diagnosed, codes_seen, diagnose
from avb_service.likelihood.ais import ais
from avb_service.likelihood.anneal import AnnealConfig
from avb_service.likelihood.bdmc import bdmc
from avb_service.likelihood.certify import certify
from avb_service.likelihood.config import Budget, LikelihoodConfig
from avb_service.likelihood.corrected import elbo_corrected
from avb_service.likelihood.elbo import elbo, elbo_adversarial, elbo_ceiling
from avb_service.likelihood.exact import enumeration, ppca, quadrature
from avb_service.likelihood.importance import iwae, iwae_mixture
from avb_service.likelihood.noisy import NoisyModel
from avb_service.likelihood.parzen import Windows, parzen_rows
from avb_service.likelihood.proposals import from_prior, mixed, own, refined
from avb_service.likelihood.scoring import Progress, Runner, Scored, Scorer, Task, estimate, serially
from avb_service.records import Certificate, Diagnosis, Estimate, Kind, LikelihoodRecord
from avb_service.training.config import TrainingConfig

Estimator = Callable[[JointDensity, LikelihoodConfig], Scorer]
A_FUNCTION = "a function of a model and its likelihood section that gives an avb_service.likelihood.scoring.Scorer"
# From the one that says the most. What does not apply to a model is left out.
OURS: Mapping[str, Estimator] = {
    "quadrature": lambda model, c: quadrature(model),
    "enumeration": lambda model, c: enumeration(model),
    "ppca": lambda model, c: ppca(model),
    "ais": lambda model, c: ais(model, refined(model, c.pilot), c.ais),
    "ais_doubled": lambda model, c: ais(model, refined(model, c.pilot), _doubled(c.ais), name="ais_doubled"),
    "ais_prior": lambda model, c: ais(model, from_prior(model), c.ais_prior, "sigmoid", name="ais_prior"),
    "bdmc": lambda model, c: bdmc(model, refined(model, c.pilot), c.ais),
    "iwae_mixture": lambda model, c: iwae_mixture(
        model, mixed(model, c.search, c.proposal_draws, c.inflate), 2 * c.importance_draws
    ),
    "iwae": lambda model, c: iwae(model, own(model, c.proposal_draws, c.inflate), c.importance_draws),
    "elbo": lambda model, c: elbo(model, c.elbo_draws),
    "elbo_adversarial": lambda model, c: elbo_adversarial(model, c.elbo_draws, c.seed),
    "elbo_corrected": lambda model, c: elbo_corrected(model, c.corrected),
    "elbo_ceiling": lambda model, c: elbo_ceiling(model, c.proposal_draws),
}


def _objection(name: str, found: object) -> str | None:
    return None if callable(found) and not isinstance(found, type) else A_FUNCTION


ESTIMATORS: Table[Estimator] = Table("estimators", OURS, _objection)
QUICK = ("iwae_mixture", "iwae", "elbo", "elbo_adversarial", "elbo_ceiling", "quadrature", "enumeration", "ppca")
BUDGETS: Mapping[Budget, tuple[str, ...]] = {
    "quick": QUICK,
    "standard": ("ais", *QUICK),
    "certified": ("ais", *QUICK),
}
OF_ADVERSARIES = ("elbo_corrected",)  # what the certified budget buys besides, where the KL is an adversary's
DIAGNOSIS_DRAWS = 512
KINDS: tuple[Kind, ...] = ("exact", "lower_bound", "estimate")  # of log p(x), from the one that says the most
REPLACED = {"iwae_refined": "iwae_mixture"}  # names that records of older versions have
OBJECTIVES = ("iwae_mixture", "enumeration", "iwae")  # what searches compare by: the first that applies


@dataclass(frozen=True)
class Make:
    """Binds a named estimator to a model; says by its repr all that the numbers depend on."""

    name: str
    config: LikelihoodConfig

    def __call__(self, model: Scored) -> Scorer:
        """The scorer.

        Raises:
            UserError: it does not apply; names what the model lacks, and what to use.
        """
        scorer = ESTIMATORS[self.name](latent_variable_model(model), self.config)
        return replace(scorer, key=replace(scorer.key, noise=model.noise)) if isinstance(model, NoisyModel) else scorer


@dataclass(frozen=True)
class Evaluator:
    """Scores a model on data, by name.

    Attributes:
        model: whose likelihood it is.
        config: of all estimators.
        run: who scores the blocks.
        store: folder where scored blocks are kept; none by default.
        progress: told of every block: which estimator, data done, data in all.
        check: what data have to go through before they are scored: it returns them as the model sees them, or says what
            is wrong with them.
        training: how the model was trained; where that is not known, its adversary is not diagnosed.
    """

    model: Scored
    config: LikelihoodConfig
    run: Runner = serially
    store: Path | None = None
    progress: Callable[[str], Progress] = lambda name: lambda done, total: None
    check: Callable[[Given], Tensor] = torch.as_tensor
    training: TrainingConfig | None = None

    def score(self, name: str, x: Given) -> Estimate:
        """One estimate on data [n, ...].

        Raises:
            UserError: there is no such estimator, or it does not apply to the model.
            DataError: the data do not fit the model.
        """
        return self._score(name, self.check(x))

    def require(self, name: str) -> None:
        """Make sure that an estimator fits the model.

        Raises:
            UserError: there is no such estimator, or it does not apply; names what the model lacks, and what to use.
        """
        if name == "parzen":
            raise UserError("parzen asks for training data besides, and scores no model by itself: use `parzen(x)`")
        if name in REPLACED:
            raise UserError(f"{name} is no more: {REPLACED[name]} has taken its place; use that")
        if name not in ESTIMATORS:
            raise UserError(f"no estimator {name!r}; there are {', '.join(ESTIMATORS)} and parzen")
        Make(name, self.config)(self.model)

    def applies(self, name: str) -> bool:
        """Whether an estimator fits the model."""
        try:
            self.require(name)
        except UserError:
            return False
        return True

    def kinds(self) -> list[Kind]:
        """What log p(x) can be had as, for this model: exact, lower_bound, estimate."""
        found = set()
        for name in BUDGETS["certified"]:
            with suppress(UserError):  # it does not apply
                scorer = Make(name, self.config)(self.model)
                found.add(scorer.kind if scorer.quantity == "log_likelihood" else None)
        return [kind for kind in KINDS if kind in found]

    def objective(self, x: Given) -> Estimate:
        """The estimate that searches compare by."""
        return self.score(next(filter(self.applies, OBJECTIVES)), x)

    def evaluate(self, x: Given, budget: Budget = "quick") -> list[Estimate]:
        """What the budget buys, on data [n, ...]; first the one that is most to be believed among bounds.

        Raises:
            UserError: the model has no likelihood, or none that can be estimated; or there is no such budget.
        """
        latent_variable_model(self.model)
        if budget not in BUDGETS:
            raise UserError(f"no budget {budget!r}; there are {', '.join(BUDGETS)}")
        few = {"quadrature": self.config.quadrature_data, "elbo_corrected": self.config.adversary_data}
        more = OF_ADVERSARIES if budget == "certified" and isinstance(self.model, AdversarialModel) else ()
        names = [name for name in (*BUDGETS[budget], *more) if self.applies(name)]
        if not names:
            self.require(OBJECTIVES[0])  # says why not
        x = self.check(x)
        return [self._score(name, x[: few.get(name)]) for name in names]

    def assess(self, x: Given, budget: Budget, basis: Mapping[str, str] | None = None) -> LikelihoodRecord:
        """What the budget buys, with a certificate where it is to have one and the model can be annealed.

        Args:
            x: data [n, ...].
            budget: of estimates; a certificate is part of the certified one. An adversary is diagnosed under each.
            basis: of the record.

        Raises:
            UserError: as for `evaluate`.
        """
        estimates = tuple(self.evaluate(x, budget))
        annealed = budget == "certified" and self.applies("ais")
        certificate = self.certify(x, estimates) if annealed else None
        return LikelihoodRecord(basis or {}, estimates, certificate, self.diagnosis(x))

    def certify(self, x: Given, known: Sequence[Estimate] = ()) -> Certificate:
        """Whether `ais` on such data can be believed.

        Args:
            x: data [n, ...].
            known: what `evaluate` has found on these very data, `ais` among it; by default, it is asked to.

        Raises:
            UserError: the model cannot be annealed.
        """
        self.require("ais")
        x = self.check(x)
        known = known or self.evaluate(x[: self.config.certificate.real], "standard")
        annealed, *_ = (each for each in known if each.key.estimator == "ais")

        def score(name: str, part: Tensor) -> Estimate:
            return annealed.first(len(part)) if name == "ais" else self._score(name, part)

        return certify(score, x, self.config.ais.chains, self.config.certificate, known)

    def diagnosis(self, x: Given) -> Diagnosis | None:
        """What speaks against the model's adversary on data [n, ...]; None where it has none that can be diagnosed."""
        if self.training is None or not can_be_diagnosed(self.model):
            return None
        x = self.check(x)[: self.config.adversary_data]
        seen = codes_seen(self.model, self.training.rounds, self.training.batch_size)
        return diagnose(self.model, x, seen, draws=DIAGNOSIS_DRAWS, seed=self.config.seed)

    def parzen(self, train: Given, validation: Given, x: Given) -> tuple[Estimate, Estimate]:
        """Parzen windows on draws from the model, and on as many training data: of another quantity than log p(x).

        Args:
            train: the model's training data [m, ...].
            validation: for the bandwidths, one for each of the two.
            x: data [n, ...].

        Raises:
            UserError: the model is no method's, and was trained on nothing that is known here.
        """
        if not isinstance(self.model, Algorithm):
            raise UserError("parzen sets a model beside its training data, of which nothing is known here: use ais")
        train, validation, x = map(self.check, (train, validation, x))
        samples, seed = self.config.parzen_samples, self.config.seed
        return parzen_rows(self.model, train, validation, x, self._estimate, samples=samples, seed=seed)

    def _score(self, name: str, x: Tensor) -> Estimate:
        """`score` without a check: of data that have had theirs, or of the numbers that `bdmc` takes in their place."""
        self.require(name)
        return self._estimate(Make(name, self.config), x)

    def _estimate(self, make: Make | Windows, x: Tensor) -> Estimate:
        config = self.config
        task = Task(self.model, make, x, config.seed, config.memory_mib, config.block_data)
        return estimate(task, run=self.run, store=self.store, progress=self.progress(make.name))


def latent_variable_model(model: Scored) -> JointDensity:
    """The model as one that has a likelihood.

    Raises:
        UserError: it has none; names what it lacks.
    """
    if not isinstance(model, JointDensity):
        noise = "name the noise of its observations (--noise 0.1, in Python noise=0.1), or "
        raise UserError(
            f"{model.config.name} defines no p(x|z), so it has no log-likelihood: "
            f"{noise if isinstance(model, DecodingModel) else ''}use parzen, which asks for samples alone"
        )
    return model


def _doubled(recipe: AnnealConfig) -> AnnealConfig:
    return recipe.model_copy(update={"temperatures": 2 * recipe.temperatures})
