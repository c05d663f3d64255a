"""Log-likelihoods that say what they are: exact, a bound, or an estimate.

Floor 5.
"""

from avb_service.likelihood.adversary import diagnose, excess
from avb_service.likelihood.certificate import Certificate, Check
from avb_service.likelihood.config import LikelihoodConfig
from avb_service.likelihood.elbo_surgery import surgery
from avb_service.likelihood.estimate import Columns, Estimate, Runner, Task, known
from avb_service.likelihood.evaluate import BUDGETS, ESTIMATORS, Budget, Evaluator, latent_variable_model
from avb_service.likelihood.noisy import NoisyModel
from avb_service.likelihood.parzen import parzen_of_draws, parzen_rows
from avb_service.likelihood.record import Comparison, LikelihoodRecord

__all__ = [
    "BUDGETS", "ESTIMATORS", "Budget", "Certificate", "Check", "Columns", "Comparison", "Estimate", "Evaluator",
    "LikelihoodConfig", "LikelihoodRecord", "NoisyModel", "Runner", "Task", "diagnose",
    "excess", "known", "latent_variable_model", "parzen_of_draws", "parzen_rows", "surgery",
]
