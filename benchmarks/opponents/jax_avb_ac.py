"""AVB with adaptive contrast in JAX, as avb_ac_digits has it, an epoch in one program: `python jax_avb_ac.py DATA`.

The same networks, noise, moments and steps; no streams of noise for many workers, no reports, no checks.
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.nn import elu, leaky_relu, log_sigmoid, relu
from jax.scipy.linalg import solve_triangular
from jax_training import adam, dense, log_bernoulli, mlp, train

LATENT, HIDDEN, BASES, NOISE, BASIS = 8, (128, 128), 8, 8, (32, 32)
RANK, ADVERSARY, DRAWS, JITTER, RATE, BETA = 64, (64, 64), 512, 1e-4, 2e-3, 0.5


def basis(layers, key: Array, n: int) -> Array:
    """Draws of the noise variables, [N, n, D]."""
    h = jax.random.normal(key, (BASES, n, NOISE))
    for number, (weight, bias) in enumerate(layers):
        h = jnp.einsum("bni,bij->bnj", elu(h) if number else h, weight) + bias[:, None]
    return h


def posterior(model, x: Array) -> tuple[Array, Array]:
    """Offset [B, D] and weights [B, N, D] of q(z|x)."""
    h = mlp(model["features"], x, relu, last=True)
    weights = elu(mlp(model["weights"], h, relu).reshape(len(x), BASES, LATENT) - 5) + 1
    return mlp(model["offset"], h, relu), weights


def draw(model, q: tuple[Array, Array], key: Array) -> Array:
    """Codes [B, D]."""
    offset, weights = q
    return offset + jnp.einsum("bnd,nbd->bd", weights, basis(model["basis"], key, len(offset)))


def whiten(q: tuple[Array, Array], moments: tuple[Array, Array], z: Array) -> tuple[Array, Array]:
    """Whitened codes, and log r(z|x) up to a constant; r is constant for both players."""
    (offset, weights), (mean, covariance) = jax.lax.stop_gradient((q, moments))
    centre = offset + jnp.einsum("bnd,nd->bd", weights, mean)
    whole = jnp.einsum("bni,nij,bnj->bij", weights, covariance, weights) + JITTER * jnp.eye(LATENT)
    factor = jnp.linalg.cholesky(whole)
    u = solve_triangular(factor, (z - centre)[..., None], lower=True)[..., 0]
    return u, -(u**2).sum(-1) / 2 - jnp.log(jnp.diagonal(factor, axis1=1, axis2=2)).sum(-1)


def log_ratio(adversary, x: Array, u: Array) -> Array:
    """T(x, u), [..., B]."""
    h, c = (mlp(adversary[part], v, leaky_relu, last=True) for part, v in (("features", x), ("code", u)))
    theta, s, t_x, t_z = (mlp(adversary[n], v, relu) for n, v in (("theta", h), ("s", c), ("t_x", h), ("t_z", c)))
    return (theta * s).sum(-1) + t_x[..., 0] + t_z[..., 0]


def adversary_loss(adversary, model, moments, x: Array, key: Array) -> Array:
    """Eq. 3.3 of the paper, of whitened codes."""
    of_q, of_p = jax.random.split(key)
    q = posterior(model, x)
    u, _ = whiten(q, moments, draw(model, q, of_q))
    t_q, t_p = log_ratio(adversary, x, jnp.stack([u, jax.random.normal(of_p, u.shape)]))
    return -(log_sigmoid(t_q) + log_sigmoid(-t_p)).mean()


def model_loss(model, adversary, moments, x: Array, key: Array) -> Array:
    """Eq. 4.1."""
    q = posterior(model, x)
    z = draw(model, q, key)
    u, log_r = whiten(q, moments, z)
    kl = log_ratio(adversary, x, u) + log_r + (z**2).sum(-1) / 2
    return (kl - log_bernoulli(x, mlp(model["decoder"], z, relu))).mean()


def main() -> None:
    """Train for ever."""
    pixels = np.load(sys.argv[1])
    data = jnp.asarray(pixels.reshape(len(pixels), -1) / pixels.max(), jnp.float32)
    size, *keys = data.shape[1], *jax.random.split(jax.random.key(1), 10)
    widths = {
        "features": (size, *HIDDEN),
        "offset": (HIDDEN[-1], LATENT),
        "weights": (HIDDEN[-1], BASES * LATENT),
        "decoder": (LATENT, *HIDDEN, size),
    }
    model = {name: dense(key, *through) for key, (name, through) in zip(keys, widths.items(), strict=False)}
    model["basis"] = jax.vmap(lambda key: dense(key, NOISE, *BASIS, LATENT))(jax.random.split(keys[4], BASES))
    widths = {
        "features": (size, *ADVERSARY),
        "code": (LATENT, *ADVERSARY),
        "theta": (ADVERSARY[-1], RANK),
        "s": (ADVERSARY[-1], RANK),
        "t_x": (ADVERSARY[-1], 1),
        "t_z": (ADVERSARY[-1], 1),
    }
    adversary = {name: dense(key, *through) for key, (name, through) in zip(keys, widths.items(), strict=False)}
    of_adversary, step_adversary = adam(adversary, RATE, BETA)
    of_model, step_model = adam(model, RATE, BETA)

    def play(state, batches: Array, key: Array):
        adversary, of_adversary, model, of_model = state
        shared, seen, first, second = jax.random.split(key, 4)
        x = (jax.random.uniform(seen, batches.shape) < batches).astype(jnp.float32)
        v = basis(model["basis"], shared, DRAWS)
        centred = v - v.mean(1, keepdims=True)
        moments = v.mean(1), jnp.einsum("bni,bnj->bij", centred, centred) / (DRAWS - 1)
        gradient = jax.grad(adversary_loss)(adversary, model, moments, x[0], first)
        adversary, of_adversary = step_adversary(adversary, of_adversary, gradient)
        gradient = jax.grad(model_loss)(model, adversary, moments, x[1], second)
        model, of_model = step_model(model, of_model, gradient)
        return adversary, of_adversary, model, of_model

    train(data, 2, play, (adversary, of_adversary, model, of_model), "threefry2x32")  # the fastest here


if __name__ == "__main__":
    main()
