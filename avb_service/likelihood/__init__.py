"""Log-likelihoods that say what they are: exact, a bound, or an estimate.

Floor 5. What is found is told as records (floor 4) have it.
"""

from avb_service.likelihood.adversary import can_be_diagnosed, codes_seen, diagnose
from avb_service.likelihood.config import LikelihoodConfig
from avb_service.likelihood.elbo_surgery import surgery
from avb_service.likelihood.evaluate import BUDGETS, ESTIMATORS, Budget, Evaluator, latent_variable_model
from avb_service.likelihood.given import GivenModel, Observed
from avb_service.likelihood.noisy import NoisyModel
from avb_service.likelihood.parzen import parzen_of_draws
from avb_service.likelihood.scoring import Columns, Runner, Task
from avb_service.likelihood.trial import given_model
from avb_service.records import (
    HOLDS,
    Certificate,
    Check,
    Diagnosis,
    Estimate,
    LikelihoodRecord,
    excess,
    known,
    verdict,
)

__all__ = [
    "BUDGETS",
    "ESTIMATORS",
    "HOLDS",
    "Budget",
    "Certificate",
    "Check",
    "Columns",
    "Diagnosis",
    "Estimate",
    "Evaluator",
    "GivenModel",
    "LikelihoodConfig",
    "LikelihoodRecord",
    "NoisyModel",
    "Observed",
    "Runner",
    "Task",
    "can_be_diagnosed",
    "codes_seen",
    "diagnose",
    "excess",
    "given_model",
    "known",
    "latent_variable_model",
    "parzen_of_draws",
    "surgery",
    "verdict",
]
