"""What is known of a model's likelihood, as it is kept: read, compared, and made a verdict of, without torch.

Floor 4.
"""

from avb_service.records.certificate import HOLDS, Certificate, Check
from avb_service.records.diagnosis import Diagnosis, Excess, excess, verdict
from avb_service.records.estimate import NATS, VARIANCE, Estimate, known, mean_and_stderr
from avb_service.records.key import Key, Kind, Quantity, metric, read_older
from avb_service.records.record import LIKELIHOOD, Comparison, LikelihoodRecord
from avb_service.records.shortfall import Shortfall, shortfall

__all__ = [
    "HOLDS",
    "LIKELIHOOD",
    "NATS",
    "VARIANCE",
    "Certificate",
    "Check",
    "Comparison",
    "Diagnosis",
    "Estimate",
    "Excess",
    "Key",
    "Kind",
    "LikelihoodRecord",
    "Quantity",
    "Shortfall",
    "excess",
    "known",
    "mean_and_stderr",
    "metric",
    "read_older",
    "shortfall",
    "verdict",
]
