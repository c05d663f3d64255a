"""How log-likelihoods are estimated.

Floor 5.
"""

from typing import Annotated, Literal

from pydantic import Field

from avb_service.config import Config
from avb_service.likelihood.anneal import AnnealConfig
from avb_service.likelihood.certify import CertificateConfig
from avb_service.likelihood.corrected import CorrectionConfig
from avb_service.likelihood.proposals import PilotConfig
from avb_service.likelihood.scoring import BLOCK

Budget = Literal["quick", "standard", "certified"]
Count = Annotated[int, Field(ge=2)]


class LikelihoodConfig(Config):
    """How log-likelihoods are estimated.

    Of a model without p(x|z), Parzen windows take parzen_samples, validation_data, test_data, memory_mib and seed. The
    keys about annealing, its certificate and importance weighting count under `avb evaluate --noise`; no other does.

    Attributes:
        budget: what the final estimates are worth: quick (no annealing), standard (annealing), certified (and a
            certificate, without which no model becomes champion).
        importance_draws: K of iwae_K; iwae_mixture, which has more to draw from, draws twice as many.
        proposal_draws: draws of an implicit posterior that its Gaussian proposal is fitted to.
        inflate: factor on that Gaussian's standard deviations; less of it where latents are many.
        elbo_draws: draws of the posterior for the ELBOs.
        search: pilot chains of the mixture's Gaussian, for the estimate that searches compare by.
        pilot: pilot chains of the proposal that annealing starts from.
        ais: chains from that proposal.
        ais_prior: chains from the prior, which the certificate compares with.
        certificate: its limits.
        corrected: the fresh adversary of `elbo_corrected`.
        parzen_samples: draws from the model that Parzen windows are put on.
        diagnosis_data: how many validation data the adversary is looked at on, at every report.
        adversary_data: how many test data it is looked at on, and a fresh one is trained for.
        validation_data: how many validation data the objective of a search is computed on.
        test_data: how many test data the final estimates are computed on; all where not given.
        quadrature_data: how many of them quadrature is done for, which costs the most.
        memory_mib: bound on what one batch of decoder outputs takes.
        block_data: data at most in a batch; a core is busy with the default, a GPU with thousands.
        seed: of all noise, and of the binarisation of the data that are scored.
    """

    budget: Budget = "certified"
    importance_draws: Count = 256
    proposal_draws: Count = 256
    inflate: Annotated[float, Field(ge=1, le=3)] = 1.2
    elbo_draws: Count = 16
    search: PilotConfig = PilotConfig(temperatures=100, chains=12)
    pilot: PilotConfig = PilotConfig()
    ais: AnnealConfig = AnnealConfig()
    ais_prior: AnnealConfig = AnnealConfig(temperatures=1500)
    certificate: CertificateConfig = CertificateConfig()
    corrected: CorrectionConfig = CorrectionConfig()
    parzen_samples: Count = 10_000
    diagnosis_data: Count = 100
    adversary_data: Count = 1000
    validation_data: Count | None = 200
    test_data: Count | None = None
    quadrature_data: Count = 100
    memory_mib: Annotated[int, Field(ge=1)] = 64
    block_data: Count = BLOCK
    seed: Annotated[int, Field(ge=0)] = 0
