"""A likelihood for models that have none: their data under an observation noise that the caller names.

Floor 5.
"""

import math

from torch import Tensor
from torch.distributions import Distribution, Independent, Normal

from avb_service.algorithm import Algorithm, DecodingModel, LatentVariableModel, Player
from avb_service.distributions import ImplicitPosterior
from avb_service.errors import UserError


class NoisyModel(LatentVariableModel):
    """p(z) N(x; g(z), s^2 I) around a generator g: what is scored depends on s, so estimates carry it in their names.

    Args:
        model: makes data of codes, and has no p(x|z) of its own.
        noise: s, the standard deviation of each pixel, in the units of the data.

    Raises:
        UserError: the model has a likelihood already, or no codes; or the noise is not positive.

    Source: Wu et al. 2017, "On the quantitative analysis of decoder-based generative models", section 2.
    """

    def __init__(self, model: Algorithm, noise: float) -> None:
        name = model.config.name
        if isinstance(model, LatentVariableModel):
            raise UserError(f"{name} has a p(x|z) of its own; leave the noise out")
        if not isinstance(model, DecodingModel):
            raise UserError(f"{name} makes no data of codes, to which noise could be added: use parzen")
        if not (noise > 0 and math.isfinite(noise)):
            raise UserError(f"a noise of {noise}, expected a positive standard deviation in the units of the data")
        super().__init__(model.config, model.spec)
        self.generator, self.noise = model, noise

    def players(self) -> tuple[Player, ...]:
        """None: it is not trained."""
        return ()

    def prior(self) -> Distribution:
        """p(z)."""
        return self.generator.prior()

    def likelihood(self, z: Tensor) -> Distribution:
        """N(x; g(z), s^2 I)."""
        return Independent(Normal(self.generator.decode(z), self.noise, validate_args=False), 3, validate_args=False)

    def posterior(self, x: Tensor) -> Distribution | ImplicitPosterior:
        """There is none.

        Raises:
            UserError: always; says what does without.
        """
        raise UserError(
            f"{self.config.name} has no posterior q(z|x) under this noise: use ais, ais_prior or "
            "iwae_mixture, which ask for none"
        )
