"""A given model tried out on a few codes and data: what is wrong with it is said before anything expensive.

Floor 5.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, constraints

from avb_service.algorithm import JointDensity
from avb_service.data.inputs import Given, as_array, from_array, refuse_first
from avb_service.errors import DataError, UserError
from avb_service.likelihood.given import GivenModel, Likelihood, Posterior
from avb_service.likelihood.needs import is_discrete
from avb_service.likelihood.scoring import evaluating
from avb_service.seeding import seeded

CODES = (2, 3)  # in two dimensions, as estimators ask for them
SAME = 1e-4  # relative and absolute, of log-likelihoods: products of other sizes round otherwise


def given_model(
    likelihood: Likelihood, prior: Distribution, posterior: Posterior | None, x: Given
) -> tuple[GivenModel, Tensor]:
    """A model of given densities, and the data as it takes them, in the precision of the prior's codes, where they are.

    Args:
        likelihood: codes [..., D] -> p(x|z), batch shape [...], event shape that of a datum.
        prior: p(z), event shape [D].
        posterior: data [B, ...] -> q(z|x), batch shape [B], event shape [D]; or None.
        x: data [n, ...].

    Raises:
        UserError: a density is not what it should be: no distribution, of another shape, precision or device, not a
            number, or another one each time.
        DataError: the data are none, not finite, or outside of the likelihood's support; names the first such number.
    """
    _check_prior(prior)
    if not callable(likelihood):
        raise UserError(
            f"likelihood: given a {_name(likelihood)}, expected a function of codes [..., D] that gives p(x|z)"
        )
    with seeded("trial", "codes"), torch.no_grad():
        z = prior.sample(CODES)
        log_prior = prior.log_prob(z)
    if not (z.is_floating_point() and z.isfinite().all() and not log_prior.isnan().any()):
        raise UserError(f"prior: its draws are {z.dtype}, expected finite floating-point numbers of a known density")
    data = _data(x).to(z)
    model = GivenModel(likelihood, prior, posterior, data[:1])
    with evaluating(model), seeded("trial"):
        p = _asked(likelihood, z, "likelihood")
        _check_shapes(p, z, data)
        _check_support(_asked(likelihood, z[0, :1], "likelihood"), data)
        _check_values(model, data)
        _check_draw(p, z)
        if posterior is not None:
            _check_posterior(_asked(posterior, data[:2], "posterior"), prior, z, len(data[:2]))
    return model, data


def _check_prior(prior: Distribution) -> None:
    """One distribution of vectors."""
    if isinstance(prior, nn.Module):
        raise UserError(
            f"prior: given the module {_name(prior)}, expected a distribution: call it first, {_name(prior)}()"
        )
    if not isinstance(prior, Distribution):
        raise UserError(f"prior: given a {_name(prior)}, expected a torch distribution with event shape [D]")
    batch, event = list(prior.batch_shape), list(prior.event_shape)
    if batch or len(event) != 1:
        hint = ": wrap it, Independent(prior, 1)" if len(batch) == 1 and not event else ""
        raise UserError(
            f"prior: given batch shape {batch} and event shape {event}, expected [] and [D], one distribution of "
            f"vectors{hint}"
        )


def _data(x: Given) -> Tensor:
    tensor = x if isinstance(x, Tensor) else from_array(as_array(x))[0]
    if tensor.dim() < 2 or tensor.is_complex():
        raise DataError(f"x: given {list(tensor.shape)}, {tensor.dtype}, expected real numbers [n, ...], as [n, 1]")
    if tensor.numel() == 0:
        raise DataError(f"x: no data to score, given {list(tensor.shape)}, expected [n, ...] with n of 1 or more")
    if not (finite := tensor.isfinite()).all():
        refuse_first(tensor, ~finite, "finite numbers")
    return tensor.detach()


def _asked(function: Callable[[Tensor], Any], given: Tensor, what: str) -> Distribution:
    """What a user's function makes of codes or data; whatever it raises is told with what it was given."""
    shown = f"{list(given.shape)}, {_place(given)}"
    try:
        found = function(given)
    except Exception as error:  # somebody else's code
        hint = ""
        if what == "likelihood":
            hint = " Codes have the prior's precision and device, and any number of dimensions before the last"
        raise UserError(f"{what}: raised {_name(error)} for {shown}: {error}.{hint}") from error
    if isinstance(found, Distribution):
        return found
    hint = ', or name what a module\'s outputs are with observation="bernoulli"' if isinstance(found, Tensor) else ""
    raise UserError(f"{what}: gives a {_name(found)} for {shown}, expected a torch distribution{hint}")


def _check_shapes(p: Distribution, z: Tensor, x: Tensor) -> None:
    """Of p(x|z) at codes [2, 3, D]."""
    batch, event, datum = p.batch_shape, p.event_shape, x.shape[1:]
    if event != datum or batch != z.shape[:-1]:
        inside = (batch + event)[len(CODES) :] == datum and len(event) < len(datum)
        hint = f": wrap it, Independent(p, {len(datum) - len(event)})" if inside else ""
        raise UserError(
            f"likelihood: gives batch shape {list(batch)} and event shape {list(event)} for codes {list(z.shape)}, "
            f"expected {list(z.shape[:-1])} and the shape of a datum, {list(datum)}{hint}"
        )


def _check_support(p: Distribution, x: Tensor) -> None:
    """Of p(x|z) at one code [1, D]."""
    try:
        support = p.support
    except NotImplementedError:
        return
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    if support is not None and not (inside := support.check(x)).all():
        wrong = ~inside[(...,) + (None,) * (x.dim() - inside.dim())]
        refuse_first(x, wrong.expand_as(x), f"{support}, the support of p(x|z)")


def _check_values(model: JointDensity, x: Tensor) -> None:
    """Numbers, the same each time, for each code by itself, that a gradient by the code is known of."""
    data = x[: CODES[1]]
    z = model.prior().sample((CODES[0], len(data)))
    first, again = (model.likelihood(z).log_prob(data) for _ in range(2))
    whole = model.likelihood(z[0, :1]).log_prob(x)
    for values in (first, whole):
        if (broken := values.isnan()).any():
            raise UserError(
                f"likelihood: log p(x|z) of datum {int(broken.nonzero()[0, -1])} is not a number for a code that the "
                "prior draws: are all weights finite?"
            )
    eval_ = "a network in a function is to be put in evaluation mode, network.eval(), by who has made it"
    if not torch.allclose(first, again, SAME, SAME):
        raise UserError(f"likelihood: gives other values when it is called again with the same codes; {eval_}")
    if not torch.allclose(first[:1, :1], model.likelihood(z[:1, :1]).log_prob(data[:1]), SAME, SAME):
        raise UserError(f"likelihood: what it gives for a code depends on the other codes of its batch; {eval_}")
    if not is_discrete(model.prior()):
        with torch.enable_grad():
            codes = z.detach().requires_grad_()
            known = model.likelihood(codes).log_prob(data).requires_grad
        if not known:
            raise UserError(
                "likelihood: log p(x|z) has no gradient by z, along which codes are moved: leave out torch.no_grad(), "
                ".detach() and NumPy"
            )


def _check_draw(p: Distribution, z: Tensor) -> None:
    """Of p(x|z): a certificate is about such draws."""
    try:
        draw = p.sample()
    except NotImplementedError:
        raise UserError(
            f"likelihood: {_name(p)} cannot be drawn from, which a certificate needs: give it sample()"
        ) from None
    if draw.device != z.device or draw.is_floating_point() and draw.dtype != z.dtype:
        raise UserError(
            f"the prior's codes are {_place(z)}, and the likelihood is of {_place(draw)}: bring both to the same"
        )


def _check_posterior(q: Distribution, prior: Distribution, z: Tensor, data: int) -> None:
    """Of q(z|x) at the first data."""
    expected = [data], list(z.shape[-1:])
    found = list(q.batch_shape), list(q.event_shape)
    if found != expected:
        hint = ": wrap it, Independent(q, 1)" if found == ([*expected[0], *expected[1]], []) else ""
        raise UserError(
            f"posterior: gives batch shape {found[0]} and event shape {found[1]} for {data} data, expected "
            f"{expected[0]} and {expected[1]}{hint}"
        )
    draw = q.sample()
    if draw.device != z.device or draw.dtype != z.dtype:
        raise UserError(
            f"the prior's codes are {_place(z)}, and the posterior's {_place(draw)}: bring both to the same"
        )
    if not draw.isfinite().all() or (prior.log_prob(draw) == -math.inf).any():
        raise UserError("posterior: draws codes that are not finite, or that the prior does not have")


def _name(value: object) -> str:
    return type(value).__name__


def _place(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} on {tensor.device}"
