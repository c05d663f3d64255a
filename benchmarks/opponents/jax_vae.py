"""A Gaussian VAE in JAX, an epoch in one program: `python jax_vae.py DATA LATENT HIDDEN ...`."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax_training import adam, dense, log_bernoulli, mlp, train


def main() -> None:
    """Train for ever."""
    path, *numbers = sys.argv[1:]
    latent, *hidden = map(int, numbers)
    pixels = np.load(path)
    data, binary = jnp.asarray(pixels.reshape(len(pixels), -1) / pixels.max(), jnp.float32), pixels.max() == 1
    keys = jax.random.split(jax.random.key(1))
    params = (dense(keys[0], data.shape[1], *hidden, 2 * latent), dense(keys[1], latent, *hidden[::-1], data.shape[1]))
    state, step = adam(params, 1e-3, 0.9)

    def loss(params, x: Array, key: Array) -> Array:
        encoder, decoder = params
        mean, log_scale = jnp.split(mlp(encoder, x, jax.nn.relu), 2, -1)
        z = mean + jnp.exp(log_scale) * jax.random.normal(key, mean.shape)
        kl = (mean**2 + jnp.exp(2 * log_scale) - 1).sum(-1) / 2 - log_scale.sum(-1)
        return (kl - log_bernoulli(x, mlp(decoder, z, jax.nn.relu))).mean()

    def play(state, batches: Array, key: Array):
        params, moments = state
        seen, noise = jax.random.split(key)
        x = batches[0] if binary else (jax.random.uniform(seen, batches[0].shape) < batches[0]).astype(jnp.float32)
        return step(params, moments, jax.grad(loss)(params, x, noise))

    train(data, 1, play, (params, state), "unsafe_rbg")  # the fastest here


if __name__ == "__main__":
    main()
