"""What both opponents in JAX are made of: layers, Adam, and whole epochs in one program."""

import os

os.environ["JAX_PLATFORMS"] = os.environ.get("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
if hasattr(os, "sched_setaffinity"):  # it makes a thread for each core that it sees
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from laps import Laps

BATCH, EPOCH = 128, 100  # data in a step; rounds in a program
Params = Any


def dense(key: Array, *widths: int) -> Params:
    """Weights and biases of linear layers through the widths, as torch starts them."""
    keys = jax.random.split(key, len(widths))
    return [
        (jax.random.uniform(k, (before, after), minval=-1, maxval=1) / before**0.5, jnp.zeros(after))
        for k, before, after in zip(keys, widths, widths[1:], strict=False)
    ]


def mlp(layers: Params, x: Array, activation: Callable[[Array], Array], last: bool = False) -> Array:
    """The layers with activations between them, and behind the last where asked for."""
    for number, (weight, bias) in enumerate(layers, 1):
        x = x @ weight + bias
        x = activation(x) if last or number < len(layers) else x
    return x


def adam(params: Params, rate: float, beta1: float, beta2: float = 0.999) -> tuple[Params, Callable[..., Any]]:
    """The state of Adam, and its step: (parameters, state, gradient) -> parameters, state."""
    zeros = jax.tree.map(jnp.zeros_like, params)

    def step(params: Params, state: Any, gradient: Params) -> tuple[Params, Any]:
        first, second, count = state
        count = count + 1
        first = jax.tree.map(lambda m, g: beta1 * m + (1 - beta1) * g, first, gradient)
        second = jax.tree.map(lambda v, g: beta2 * v + (1 - beta2) * g * g, second, gradient)
        size, root = rate / (1 - beta1**count), (1 - beta2**count) ** 0.5
        params = jax.tree.map(lambda p, m, v: p - size * m / (jnp.sqrt(v) / root + 1e-8), params, first, second)
        return params, (first, second, count)

    return (zeros, zeros, jnp.zeros(())), step


def log_bernoulli(x: Array, logits: Array) -> Array:
    """Log p(x) of binary pixels, summed over each datum."""
    return (x * logits - jax.nn.softplus(logits)).sum(-1)


def train(data: Array, steps: int, play: Callable[[Any, Array, Array], Any], state: Any, generator: str) -> None:
    """Train for ever: an epoch is one program.

    Args:
        data: all of them, [N, D].
        steps: batches in a round.
        play: (state, batches [steps, B, D], key) -> state.
        state: parameters and optimizers.
        generator: of random numbers, JAX's name of it.
    """

    def round_(state: Any, given: tuple[Array, Array]) -> tuple[Any, None]:
        rows, key = given
        return play(state, data[rows], key), None

    @jax.jit
    def epoch(state: Any, key: Array) -> tuple[Any, Array]:
        key, order, noise = jax.random.split(key, 3)
        passes = -(-EPOCH * steps * BATCH // len(data))
        rows = jax.vmap(lambda k: jax.random.permutation(k, len(data)))(jax.random.split(order, passes)).reshape(-1)
        rows = rows[: EPOCH * steps * BATCH].reshape(EPOCH, steps, BATCH)
        return lax.scan(round_, state, (rows, jax.random.split(noise, EPOCH)))[0], key

    laps, key = Laps(), jax.random.key(0, impl=generator)
    while True:
        state, key = jax.block_until_ready(epoch(state, key))
        laps(EPOCH)
