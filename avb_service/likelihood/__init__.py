"""Log-likelihoods that say what they are: exact, a bound, or an estimate.

Floor 5.
"""

from avb_service.likelihood.adversary import Diagnosis, can_be_diagnosed, codes_seen, diagnose, excess, verdict
from avb_service.likelihood.certificate import HOLDS, Certificate, Check
from avb_service.likelihood.config import LikelihoodConfig
from avb_service.likelihood.elbo_surgery import surgery
from avb_service.likelihood.estimate import Columns, Estimate, Runner, Task, known
from avb_service.likelihood.evaluate import BUDGETS, ESTIMATORS, Budget, Evaluator, latent_variable_model
from avb_service.likelihood.noisy import NoisyModel
from avb_service.likelihood.parzen import parzen_of_draws
from avb_service.likelihood.record import Comparison, LikelihoodRecord

__all__ = [
    "BUDGETS",
    "ESTIMATORS",
    "HOLDS",
    "Budget",
    "Certificate",
    "Check",
    "Columns",
    "Comparison",
    "Diagnosis",
    "Estimate",
    "Evaluator",
    "LikelihoodConfig",
    "LikelihoodRecord",
    "NoisyModel",
    "Runner",
    "Task",
    "can_be_diagnosed",
    "codes_seen",
    "diagnose",
    "excess",
    "known",
    "latent_variable_model",
    "parzen_of_draws",
    "surgery",
    "verdict",
]
