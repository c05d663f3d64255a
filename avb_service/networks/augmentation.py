"""Random affine maps of images, each datum its own.

Floor 1.
"""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from avb_service.config import Config
from avb_service.errors import DataError
from avb_service.networks.trunks import ImageShape
from avb_service.networks.warp import warp

Amount = Annotated[float, Field(ge=0, le=1)]


class AugmentationConfig(Config):
    """By how much, at most: all are drawn evenly from both signs, for each datum.

    Attributes:
        rotation: radians.
        shear: sideways for each step upwards.
        zoom: of both sides by themselves, as the logarithm of a factor.
        shift: in halves of the image's sides.
    """

    rotation: Amount = 0.35
    shear: Amount = 0.5
    zoom: Amount = 0.2
    shift: Amount = 0.15

    def check(self, shape: ImageShape) -> None:
        """Make sure that data of a shape can be turned and sheared.

        Raises:
            DataError: they are points or vectors.
        """
        if 1 in shape[1:]:
            raise DataError(
                f"algorithm.augmentation: it turns and shears images, given data of shape {list(shape)}; set it to null"
            )

    def __call__(self, x: Tensor) -> Tensor:
        """Images [B, C, H, W], mapped; gradients flow through. What comes in from outside is 0."""
        limits = (self.rotation, self.shear, self.zoom, self.zoom, self.shift, self.shift)
        angle, shear, *zoom, across, down = (x.new_empty(len(x)).uniform_(-1, 1) * limit for limit in limits)
        wide, high = (z.exp() for z in zoom)
        cosine, sine = angle.cos(), angle.sin()
        rows = (
            torch.stack([cosine * wide, (shear * cosine - sine) * high, across], -1),
            torch.stack([sine * wide, (shear * sine + cosine) * high, down], -1),
        )
        return warp(x, torch.stack(rows, -2))
