"""A sigmoid belief network: layers of bits, each drawn given the layer above.

Floor 1.
"""

from typing import cast

import torch
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.nn.functional import softplus

from avb_service.discrete import LayeredBits, bits
from avb_service.distributions import BernoulliObservation, DataSpec


class BeliefNetwork(nn.Module):
    """p(x|z_1) p(z_1|z_2) ... p(z_L): p(z_l,i = 1 | z_{l+1}) = sigmoid(sum_j W_ij z_{l+1},j + b_i).

    The code is [z_1, ..., z_L], the layer next to the data first.

    Args:
        layers: sizes of z_1 .. z_L.
        spec: what a datum is; without its codes each pixel starts at the training set's mean.

    Source: Neal 1992, "Connectionist learning of belief networks"; Jordan et al. 1999, eq. 61 and 63.
    """

    def __init__(self, layers: tuple[int, ...], spec: DataSpec) -> None:
        super().__init__()
        self.layers, self.shape = layers, spec.shape
        self.observation = BernoulliObservation()
        self.visible = nn.Linear(layers[0], spec.mean.numel())
        with torch.no_grad():
            self.visible.bias.copy_(self.observation.bias(spec.mean).flatten())
        self.hidden = nn.ModuleList(nn.Linear(above, below) for below, above in zip(layers, layers[1:], strict=False))
        self.top = nn.Parameter(torch.zeros(layers[-1]))

    def prior(self) -> LayeredBits:
        """p(z_1, ..., z_L), event shape [D]."""
        return LayeredBits(self.top, tuple(self.hidden)[::-1], self.layers[::-1], downward=True)

    def likelihood(self, z: Tensor) -> Distribution:
        """p(x|z_1), event shape [C, H, W], for codes [..., D]."""
        logits = self.visible(z[..., : self.layers[0]])
        return self.observation(logits.unflatten(-1, (1, *self.shape)))

    def dream(self, n: int) -> tuple[Tensor, Tensor]:
        """Draws x, z ~ p(x,z), [n, C, H, W] and [n, D], without gradients."""
        with torch.no_grad():
            z = self.prior().sample((n,))
            return bits(self.visible(z[:, : self.layers[0]])).sample().unflatten(-1, self.shape), z

    def expected_log_joint(self, x: Tensor, logits: Tensor) -> Tensor:
        """A lower bound on E_q[log p(x,z)] for q(z|x) of independent bits, in nats, [B].

        Args:
            x: data [B, C, H, W].
            logits: of q, [B, D].
        """
        layers = logits.split(self.layers, -1)
        top = layers[-1].sigmoid()
        total = (top * self.top - softplus(self.top)).sum(-1) + expected_log_prob(self.visible, x.flatten(1), layers[0])
        for link, below, above in zip(self.hidden, layers, layers[1:], strict=False):
            total = total + expected_log_prob(cast(nn.Linear, link), below.sigmoid(), above)
        return total


def expected_log_prob(link: nn.Linear, below: Tensor, above: Tensor) -> Tensor:
    """A lower bound on E_q[log p(below|above)], q independent bits, [B].

    With s = W above + b, log p = below s - log(1 + e^s), and E_q[log(1 + e^s)] <= xi E_q[s] + log E_q[e^(-xi s) +
    e^((1-xi) s)] for any xi in [0, 1]; here xi = sigmoid(E_q[s]), which is the best where s hardly varies.

    Args:
        link: W [I, J] and b.
        below: means of the units that are drawn, [B, I].
        above: logits of their parents, [B, J].

    Source: Saul, Jaakkola & Jordan 1996, where xi is optimised for each unit; Jordan et al. 1999, eq. 66.
    """
    mean = link(above.sigmoid())
    xi = mean.sigmoid()
    log_normaliser = xi * mean + torch.logaddexp(_log_moment(link, above, -xi), _log_moment(link, above, 1 - xi))
    return (below * mean - log_normaliser).sum(-1)


def _log_moment(link: nn.Linear, above: Tensor, t: Tensor) -> Tensor:
    """Log E_q[e^(t s)], [B, I], for t [B, I]: log(1 - m + m e^(t w)) is a difference of softplus in the logits."""
    shifted = softplus(above[:, None] + t[..., None] * link.weight).sum(-1)
    return shifted - softplus(above).sum(-1, keepdim=True) + t * link.bias
