"""The adversarial ELBO again, by an adversary that had nothing else to do.

Floor 5. In training the adversary chases an encoder that moves; here the encoder stands still. There is also little
left to learn: the contrast is a Gaussian with q's own mean and full covariance, whose density is known.
"""

from typing import Annotated

import torch
import torch.distributed as dist
from pydantic import Field
from torch import Tensor
from torch.distributions import Distribution, MultivariateNormal
from torch.nn.functional import logsigmoid

from avb_service.algorithm import Algorithm, Batch, JointDensity, LatentVariableModel, Loss, Player
from avb_service.config import Config
from avb_service.distributions import ImplicitPosterior
from avb_service.errors import UserError
from avb_service.likelihood.moments import exact_moments
from avb_service.likelihood.needs import is_discrete, some_posterior
from avb_service.likelihood.scoring import Columns, Scorer
from avb_service.maths import cholesky, fit_gaussian, log_mean_exp, whiten
from avb_service.networks.adversaries import AdversaryConfig, FlatConfig
from avb_service.networks.trunks import MLPConfig
from avb_service.optim import Positive, ScheduleConfig, TurnConfig
from avb_service.records import NATS, Key
from avb_service.seeding import generator, one_thread
from avb_service.training.config import TrainingConfig
from avb_service.training.loop import Engine

LARGEST = 5000  # data that one adversary is trained for
CODES = 2**16  # drawn at a time
TERM = "train/adversary/log_ratio"


class CorrectionConfig(Config):
    """A fresh adversary, and how it is trained.

    No gradient penalty and no instance noise: both move T towards a smaller KL.

    Attributes:
        rounds: steps that it is trained for.
        batch_size: data in a step.
        draws: codes of each of them in a step, of either kind.
        moment_draws: codes that the moments of a posterior are taken from; what they are off by, T has to make good.
        elbo_draws: codes of each datum that the estimate is made of.
        discriminator: T(x, u).
        adversary: its optimizer.
    """

    rounds: Positive = 3000
    batch_size: Positive = 128
    draws: Positive = 8
    moment_draws: Annotated[int, Field(ge=8)] = 2048
    elbo_draws: Annotated[int, Field(ge=2)] = 256
    discriminator: AdversaryConfig = FlatConfig(
        trunk=MLPConfig(hidden=(128,), activation="leaky_relu"), hidden=(128, 128)
    )
    adversary: TurnConfig = TurnConfig(lr=5e-3, schedule=ScheduleConfig(decay="linear", decay_from=0.1))


def elbo_corrected(model: JointDensity, config: CorrectionConfig) -> Scorer:
    """E_q[log p(x|z) - T(x,u) - log r(z|x) + log p(z)], r = N(m, S) with q's moments, u = L^-1 (z - m), L L' = S.

    T is trained from scratch on the very data that are scored, on fresh draws at each step, so it cannot learn them by
    heart. Still an `estimate`, and no bound: it comes down to the ELBO of q as T finds more of the KL.

    The columns: `reconstruction`, `kl`, `log_normaliser` = log E_r e^T, which is 0 of a perfect T, and `drift`, by how
    much E_q T has moved over the last quarter of the training. Both ought to be small.

    Args:
        model: with continuous codes; its posterior may be implicit.
        config: the adversary, and how it is trained.

    Raises:
        UserError: the codes are discrete, the model has no posterior, or this is one of several data-parallel workers.

    Source: Mescheder et al. 2017, section 4, with the encoder frozen.
    """
    if dist.is_initialized() and dist.get_world_size() > 1:
        raise UserError(
            "elbo_corrected trains an adversary of its own, in which data-parallel workers would wait for each other "
            "for ever: score the model when it is trained, with `avb evaluate --estimator elbo_corrected`"
        )
    some_posterior(model)
    if not isinstance(model, LatentVariableModel):
        raise UserError("elbo_corrected trains an adversary for a method of this package: use iwae, which needs none")
    if is_discrete(model.prior()):
        raise UserError(
            f"elbo_corrected needs continuous codes, those of {type(model).__name__} are discrete: use iwae"
        )

    def score(x: Tensor) -> Columns:
        game = Correction(model, x, config)
        with one_thread():
            drift = _train(game, config)
        reconstruction, kl = game.terms(config.elbo_draws)
        return {
            NATS: reconstruction - kl,
            "reconstruction": reconstruction,
            "kl": kl,
            "log_normaliser": game.log_normaliser(config.elbo_draws),
            "drift": torch.full_like(kl, drift),
        }

    recipe = {name: getattr(config, name) for name in ("rounds", "batch_size", "draws", "moment_draws", "elbo_draws")}
    return Scorer(Key("elbo_corrected"), "estimate", 1, score, block=LARGEST, recipe=recipe)


class Correction(Algorithm):
    """A game of one: an adversary T(x, u) tells whitened codes from N(0, I).

    The batches are numbers of data, [B], since each datum has a contrast of its own.

    Args:
        model: whose posterior is looked at; it is no part of the game, and stays as it is.
        x: data [n, ...].
        config: the adversary.
    """

    def __init__(self, model: LatentVariableModel, x: Tensor, config: CorrectionConfig) -> None:
        super().__init__(config, model.spec)
        self.posterior, self.likelihood, self.prior, self.x = model.posterior, model.likelihood, model.prior(), x
        size = max(1, CODES // config.moment_draws)
        moments = [_moments(model.posterior(part), config.moment_draws) for part in x.split(size)]
        self.mean, self.factor = (torch.cat(parts) for parts in zip(*moments, strict=True))
        self.discriminator = config.discriminator.build(model.spec.shape, self.mean.shape[-1], quadratic=False).to(x)

    def players(self) -> tuple[Player, ...]:
        """The adversary, alone."""
        networks = (self.discriminator,)
        return (Player(name="adversary", objective=self.loss, networks=networks, turn=self.config.adversary),)

    def sample(self, n: int) -> Tensor:
        """There is nothing to draw."""
        raise NotImplementedError("an adversary models a ratio, of which nothing can be drawn")

    def loss(self, batch: Batch) -> Loss:
        """-E_q[log sigmoid(T(x,u))] - E_N(0,I)[log(1 - sigmoid(T(x,u)))]."""
        x, r = self.x[batch.x], self.contrast(batch.x)
        with torch.no_grad():
            u_q, _ = whiten(r, self.posterior(x).sample((self.config.draws,)))
        t_q, t_r = self.discriminator(x)(torch.stack([u_q, torch.randn_like(u_q)]))
        return Loss(-(logsigmoid(t_q) + logsigmoid(-t_r)).mean(), {"log_ratio": t_q.detach().mean()})

    def contrast(self, numbers: Tensor) -> MultivariateNormal:
        """R(z|x) of data by number, batch shape [B]."""
        return MultivariateNormal(self.mean[numbers], scale_tril=self.factor[numbers], validate_args=False)

    def terms(self, draws: int) -> tuple[Tensor, Tensor]:
        """E_q[log p(x|z)] and E_q[T + log r - log p], [n] each."""
        q, r = self.posterior(self.x), self.contrast(torch.arange(len(self.x)))
        log_ratio = self.discriminator(self.x)
        sums = torch.zeros(2, len(self.x), dtype=torch.float64, device=self.x.device)
        for _ in range(draws):  # one at a time: as many codes as data are as many as fit
            z = q.sample()
            u, log_r = whiten(r, z)
            kl = log_ratio(u) + log_r - self.prior.log_prob(z)
            sums += torch.stack([self.likelihood(z).log_prob(self.x), kl])
        reconstruction, kl = sums / draws
        return reconstruction, kl

    def log_normaliser(self, draws: int) -> Tensor:
        """Log E_r e^T, [n]."""
        log_ratio = self.discriminator(self.x)
        return log_mean_exp(torch.stack([log_ratio(torch.randn_like(self.mean)) for _ in range(draws)]))


def _moments(q: Distribution | ImplicitPosterior, draws: int) -> tuple[Tensor, Tensor]:
    """Mean [b, D] and a factor of the covariance, [b, D, D]."""
    if (known := exact_moments(q)) is not None:
        return known[0], cholesky(known[1])
    fit = fit_gaussian(q.sample((draws,)), ridge=1e-6)
    return fit.loc, fit.scale_tril


def _train(game: Correction, config: CorrectionConfig) -> float:
    """Train the adversary, and say by how much E_q T has moved over the last quarter."""
    seed = int(torch.randint(2**31, ()))
    training = TrainingConfig(
        rounds=config.rounds, batch_size=config.batch_size, seed=seed, report_every=max(1, config.rounds // 4)
    )
    count, device = len(game.x), game.x.device

    def numbers(index: int, worker: int) -> tuple[Tensor, None]:
        return torch.randint(count, (config.batch_size,), generator=generator("cpu", seed, index)).to(device), None

    seen: list[float] = []
    with torch.enable_grad():
        Engine(game, numbers, training).run(lambda report: seen.append(report.terms[TERM]))
    return seen[-1] - seen[-2] if len(seen) > 1 else float("nan")
