"""A Gaussian VAE as one would write it by hand: `python plain_vae.py DEVICE DATA LATENT HIDDEN ...`.

In-memory tensors, a shuffled epoch after the other, torch's fused Adam; no streams of noise, no reports, no checks.
"""

import sys

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torch_laps import laps_on

BATCH = 128


def mlp(*widths: int) -> nn.Sequential:
    """Linear layers with rectifiers between them."""
    stack: list[nn.Module] = []
    for before, after in zip(widths, widths[1:], strict=False):
        stack += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*stack[:-1])


def main() -> None:
    """Train for ever."""
    device, path, *numbers = sys.argv[1:]
    latent, *hidden = map(int, numbers)
    laps = laps_on(device)
    pixels = np.load(path)
    data = torch.from_numpy(pixels).flatten(1).to(device, torch.float32) / pixels.max()
    binary = pixels.max() == 1
    encoder = mlp(data.shape[1], *hidden, 2 * latent).to(device)
    decoder = mlp(latent, *reversed(hidden), data.shape[1]).to(device)
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=1e-3, fused=True)

    def loss(x: Tensor) -> Tensor:
        mean, log_scale = encoder(x).chunk(2, -1)
        scale = log_scale.exp()
        logits = decoder(mean + scale * torch.randn_like(mean))
        kl = (mean.square() + scale.square() - 1).sum() / 2 - log_scale.sum()
        return (binary_cross_entropy_with_logits(logits, x, reduction="sum") + kl) / len(x)

    while True:
        for number, rows in enumerate(torch.randperm(len(data), device=device).split(BATCH)[: len(data) // BATCH], 1):
            x = data[rows]
            optimizer.zero_grad()
            loss(x if binary else torch.bernoulli(x)).backward()
            optimizer.step()
            if number % 10 == 0:
                laps(10)


if __name__ == "__main__":
    main()
