"""f-divergences D_f(P || Q) = E_Q[f(p/q)], and what it takes to learn one from draws (Nowozin et al. 2016).

Floor 0. For any critic V, D_f(P || Q) >= E_P[g(V)] - E_Q[f*(g(V))] (eq. 4 and 7), with equality where g(V) = f'(p/q);
the output activation g keeps V within the domain of the conjugate f*(t) = sup_u (u t - f(u)).
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import softplus

Function = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Divergence:
    """A line of tables 1, 2 and 6 of Nowozin et al. 2016.

    Attributes:
        about: what it is called, and which of the two it weighs its errors by.
        f: convex, f(1) = 0, of density ratios u = p/q > 0; the GAN's alone has f(1) = -log 4.
        conjugate: f*, of numbers t in its domain.
        activation: g, from any number into that domain, increasing.
        composed: f*(g(v)) in a form that neither overflows early nor loses digits.
        at_equality: t* = f'(1), what g(V) is where p = q, and so the threshold between "real" and "drawn".
    """

    about: str
    f: Function
    conjugate: Function
    activation: Function
    composed: Function
    at_equality: float


def _jeffrey_conjugate(t: Tensor) -> Tensor:
    """W(e^(1-t)) + 1 / W(e^(1-t)) + t - 2."""
    from scipy.special import wrightomega  # slow to import, and one divergence's alone

    w = torch.as_tensor(wrightomega((1 - t).detach().double().cpu().numpy())).to(t)  # W(e^y), without overflow
    return w + 1 / w + t - 2


LOG2 = math.log(2)

DIVERGENCES: Mapping[str, Divergence] = {
    "kl": Divergence(
        "KL(P || Q), covers all modes",
        lambda u: u * u.log(),
        lambda t: torch.exp(t - 1),
        lambda v: v,
        lambda v: torch.exp(v - 1),
        1.0,
    ),
    "reverse_kl": Divergence(
        "KL(Q || P), seeks one mode",
        lambda u: -u.log(),
        lambda t: -1 - torch.log(-t),
        lambda v: -torch.exp(-v),
        lambda v: v - 1,
        -1.0,
    ),
    "pearson": Divergence(
        "Pearson's chi^2, covers even more than KL",
        lambda u: (u - 1).square(),
        lambda t: t.square() / 4 + t,
        lambda v: v,
        lambda v: v.square() / 4 + v,
        0.0,
    ),
    "neyman": Divergence(
        "Neyman's chi^2, seeks even more than reverse KL",
        lambda u: (1 - u).square() / u,
        lambda t: 2 - 2 * torch.sqrt(1 - t),
        lambda v: -torch.expm1(-v),
        lambda v: -2 * torch.expm1(-v / 2),
        0.0,
    ),
    "squared_hellinger": Divergence(
        "squared Hellinger distance",
        lambda u: (u.sqrt() - 1).square(),
        lambda t: t / (1 - t),
        lambda v: -torch.expm1(-v),
        torch.expm1,
        0.0,
    ),
    # With the paper's g(v) = v a critic has to say -q/p where q >> p; here it says log p/q, and f*(g(v)) has no W.
    "jeffrey": Divergence(
        "KL(P || Q) + KL(Q || P)",
        lambda u: (u - 1) * u.log(),
        _jeffrey_conjugate,
        lambda v: v - torch.expm1(-v),
        lambda v: v + torch.expm1(v),
        0.0,
    ),
    "jensen_shannon": Divergence(
        "2 JS(P, Q)",
        lambda u: u * u.log() - (1 + u) * torch.log((1 + u) / 2),
        lambda t: -torch.log(2 - torch.exp(t)),
        lambda v: LOG2 - softplus(-v),
        lambda v: softplus(v) - LOG2,
        0.0,
    ),
    "gan": Divergence(
        "2 JS(P, Q) - log 4",
        lambda u: u * u.log() - (1 + u) * torch.log(1 + u),
        lambda t: -torch.log(-torch.expm1(t)),
        lambda v: -softplus(-v),
        softplus,
        -LOG2,
    ),
    "total_variation": Divergence(
        "total variation distance",
        lambda u: (u - 1).abs() / 2,
        lambda t: t,
        lambda v: torch.tanh(v) / 2,
        lambda v: torch.tanh(v) / 2,
        0.0,
    ),
}
