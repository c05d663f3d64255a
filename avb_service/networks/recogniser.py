"""The recogniser: which code a datum was made of, read off features of it.

Floor 1.
"""

import math

from torch import Tensor, nn
from torch.distributions import Independent, Normal

from avb_service.discrete import OneOfK, ProductDistribution
from avb_service.networks.trunks import layers

UNIFORM_SCALE = 1 / math.sqrt(3)  # standard deviation of a number that is uniform on [-1, 1]


class Recogniser(nn.Module):
    """Q(c|x): one of K categories, and numbers in [-1, 1] with Gaussian errors.

    The errors' scale is fixed, as in the authors' code. One that is learned pays ever more for a number that is told
    from its nearest neighbours, which nobody can see: the generator writes it into a few pixels, and draws no more.

    Args:
        features: F.
        hidden: widths between the features and the distribution.
        categories: K.
        continuous: how many numbers.

    Source: Chen et al. 2016, section 5 and appendix C.
    """

    def __init__(self, features: int, hidden: tuple[int, ...], categories: int, continuous: int) -> None:
        super().__init__()
        self.sizes, widths = [categories, continuous], (features, *hidden)
        out = nn.Linear(widths[-1], categories + continuous)
        self.network = nn.Sequential(*layers(widths, "leaky_relu"), out)

    def forward(self, h: Tensor) -> ProductDistribution:
        """Q(c|x) for features of x, [B, F]; batch shape [B]."""
        logits, mean = self.network(h).split(self.sizes, -1)
        errors = Independent(Normal(mean, UNIFORM_SCALE, validate_args=False), 1, validate_args=False)
        return ProductDistribution(OneOfK(logits), errors)
