"""Points on noisy rings in the plane."""

import numpy as np

from avb_service.data.sources import Pool, Source, Wanted
from avb_service.data.splits import hold

POINTS = 6_000
RINGS_AROUND = 3  # of radius 1, 2, 3 around the origin
NOISE = 0.1  # standard deviation of the radius


def _rings(config: Wanted) -> Pool:
    random = np.random.default_rng(config.seed)
    ring = random.integers(RINGS_AROUND, size=POINTS)
    radius = 1 + ring + NOISE * random.standard_normal(POINTS)
    angle = random.uniform(0, 2 * np.pi, POINTS)
    x = (radius * [np.cos(angle), np.sin(angle)]).T.reshape(POINTS, 1, 1, 2)  # [N, C, H, W]
    return Pool(hold(x, ring, 0, config.resident_gib), levels=0)  # real values lie on no grid of levels


RINGS = Source("6,000 points on three noisy rings, labelled by ring", "real", _rings)
