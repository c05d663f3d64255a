"""The decoder: from a code to p(x|z).

Floor 1.
"""

from torch import Tensor, nn
from torch.distributions import Distribution

from avb_service.distributions import DataSpec, ObservationConfig
from avb_service.networks.trunks import TrunkConfig


class Decoder(nn.Module):
    """p(x|z) = observation model of what the network computes from z.

    Args:
        latent_dim: D.
        spec: what a datum is; the output starts at the training set's mean.
        trunk: the network.
        observation: Bernoulli, Gaussian, discretised logistic.
    """

    def __init__(self, latent_dim: int, spec: DataSpec, trunk: TrunkConfig, observation: ObservationConfig) -> None:
        super().__init__()
        self.observation = observation.build(spec)
        bias = self.observation.bias(spec.mean)
        self.network = trunk.generator(latent_dim, self.observation.planes, spec.shape, bias)

    def forward(self, z: Tensor) -> Distribution:
        """p(x|z), batch shape [...], event shape [C, H, W], for codes [..., D]."""
        parameters = self.network(z.reshape(-1, z.shape[-1]))
        return self.observation(parameters.unflatten(0, z.shape[:-1]))
