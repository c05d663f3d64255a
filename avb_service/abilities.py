"""What a method can do, known from its type.

Floor 6.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import torch

from avb_service.algorithm import Algorithm, DataSpec, DecodingModel, EncodingModel, LatentVariableModel
from avb_service.algorithms import METHODS
from avb_service.distributions import Values
from avb_service.errors import UserError
from avb_service.likelihood import Evaluator, LikelihoodConfig
from avb_service.records import Kind
from avb_service.seeding import one_thread, seeded


@dataclass(frozen=True)
class Abilities:
    """What a method can do with its default settings.

    Attributes:
        draws: whether they are made of codes from a prior, or translated from a second source.
        encodes: whether data have codes.
        log_likelihood: what log p(x) can be had as.
        needs_noise: whether that is so under an observation noise that the caller names, and not without.
    """

    draws: Literal["prior", "translations"]
    encodes: bool
    log_likelihood: tuple[Kind, ...]
    needs_noise: bool


def abilities(method: type[Algorithm]) -> Abilities:
    """What a method can do."""
    kinds: tuple[Kind, ...] = ()
    if issubclass(method, LatentVariableModel):
        config = method.Config.parse({})
        values = next(each for each in get_args(Values) if config.objection(each) is None)
        vector = DataSpec((1, 1, 8), values, {"binary": 1, "levels": 255, "real": 0}[values], torch.zeros(1, 1, 8))
        with seeded("abilities"), one_thread():  # which start faster than many
            kinds = tuple(Evaluator(method(config, vector), LikelihoodConfig()).kinds())
    decodes, scored = issubclass(method, DecodingModel), issubclass(method, LatentVariableModel)
    if decodes and not scored:
        kinds = ("lower_bound",)
    return Abilities(
        "prior" if decodes else "translations", issubclass(method, EncodingModel), kinds, decodes and not scored
    )


def encoding_model(model: Algorithm) -> EncodingModel:
    """The model as one that finds codes of data.

    Raises:
        UserError: it does not; names the method.
    """
    if not isinstance(model, EncodingModel):
        able = ", ".join(name for name, method in METHODS.own.items() if issubclass(method, EncodingModel))
        raise UserError(
            f"{model.config.name} has no encoder, so it neither encodes nor reconstructs data; methods that do: {able}"
        )
    return model
