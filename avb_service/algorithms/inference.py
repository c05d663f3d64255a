"""Settings that AVB shares with its relatives, whatever the model is.

Floor 3.
"""

from collections.abc import Iterator
from typing import Annotated

from pydantic import Field

from avb_service.algorithm import AlgorithmConfig
from avb_service.networks.adversaries import AdversaryConfig, InnerProductConfig
from avb_service.networks.encoders import EncoderConfig, NoiseInputConfig
from avb_service.optim import TurnConfig


class InferenceConfig(AlgorithmConfig):
    """Settings of the two players, whatever the model is.

    Attributes:
        encoder: the network of q(z|x), which takes noise as well.
        discriminator: the network of T(x, z).
        kl_warmup: rounds over which the weight of the KL rises from 0 to 1; 0 weighs it fully from the first.
        simultaneous: both players step at once from one batch, as in algorithm 1, and not one after the other.
        adversary: the discriminator's turn.
        model: the turn of encoder and decoder.
    """

    encoder: EncoderConfig = NoiseInputConfig()
    discriminator: AdversaryConfig = InnerProductConfig()
    kl_warmup: Annotated[int, Field(ge=0)] = 0
    simultaneous: bool = False
    adversary: TurnConfig = TurnConfig(lr=1e-4, betas=(0.5, 0.999))
    model: TurnConfig = TurnConfig(lr=5e-5, betas=(0.5, 0.999))

    def problems(self) -> Iterator[str]:
        """Who steps at once steps once a round."""
        yield from super().problems()
        if self.simultaneous and max(self.adversary.steps, self.model.steps) > 1:
            yield (
                f"simultaneous: both players step once a round, given adversary.steps {self.adversary.steps} and "
                f"model.steps {self.model.steps}; set both to 1, or simultaneous to false"
            )
