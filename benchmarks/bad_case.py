"""An AVB whose annealing from its own posterior is wrong by nats and looks right: `python -m benchmarks.bad_case`.

Trains AVB without adaptive contrast with a model that learns too fast for its adversary, so that q(z|x) collapses. Then
it is scored twice: by chains from q's own Gaussian, as is often done, and from one that pilot chains refined.
"""

import argparse
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from avb_service.figures import bounds, caption, to_png
from avb_service.fitting import Fit
from avb_service.likelihood import Evaluator, LikelihoodConfig, Task, codes_seen, diagnose
from avb_service.likelihood.ais import ais
from avb_service.likelihood.anneal import AnnealConfig
from avb_service.likelihood.bdmc import bdmc
from avb_service.likelihood.certify import certify
from avb_service.likelihood.proposals import own
from avb_service.likelihood.scoring import estimate
from avb_service.records import Certificate, Diagnosis, Estimate, Excess, excess
from avb_service.settings import read_config

SETTINGS = [
    "algorithm.model.lr=2e-3",
    "algorithm.adversary.lr=1e-3",
    "algorithm.latent_dim=8",
    "training.rounds=3000",
    "training.report_every=1000",
    "likelihood.validation_data=50",
    "likelihood.ais.temperatures=200",  # with 100, doubling moves it by up to 0.03, near a certificate's limit
]


@dataclass(frozen=True)
class BadCase:
    """What was found.

    Attributes:
        estimates: of the model, `ais_own` among them: annealed from q's own Gaussian.
        naive: certificate of `ais_own`.
        refined: certificate of `ais`.
        diagnosis: of the adversary.
        excess: of the adversarial ELBO over the refined estimate.
        subject: the model in words.
    """

    estimates: dict[str, Estimate]
    naive: Certificate
    refined: Certificate
    diagnosis: Diagnosis
    excess: Excess
    subject: str


def bad_case(data: int = 200) -> BadCase:
    """Train the model and take its likelihood apart."""
    with tempfile.TemporaryDirectory() as folder:
        experiment = Fit(read_config("avb_digits", SETTINGS), Path(folder))
        experiment.run()
    model, config = experiment.engine.model, experiment.config.likelihood
    x, _ = experiment.model.data("test", data)
    evaluator = Evaluator(model, config)
    names = ("elbo_adversarial", "elbo_corrected", "elbo_ceiling", "iwae", "iwae_mixture", "ais")
    found = {name: evaluator.score(name, x) for name in names}
    score = from_own_gaussian(experiment, config)
    found["ais_own"] = score("ais", x)
    training = experiment.config.training
    seen = codes_seen(model, training.rounds, training.batch_size)
    return BadCase(
        found,
        certify(score, x, config.ais.chains, config.certificate),
        evaluator.certify(x),
        diagnose(model, x, seen, draws=512),
        excess(found["elbo_adversarial"], found["ais"]),
        experiment.model.subject,
    )


def from_own_gaussian(experiment: Fit, config: LikelihoodConfig):
    """The certificate's estimators with chains that start from a Gaussian fitted to q; the prior's are as ever."""
    double = AnnealConfig(**{**config.ais.tree(), "temperatures": 2 * config.ais.temperatures})

    def score(name: str, x: Tensor) -> Estimate:
        def make(model):
            r = own(model, config.proposal_draws, config.inflate)
            return {
                "ais": lambda: ais(model, r, config.ais, name="ais_own"),
                "ais_doubled": lambda: ais(model, r, double, name="ais_own_doubled"),
                "bdmc": lambda: bdmc(model, r, config.ais),
            }[name]()

        if name == "ais_prior":
            return Evaluator(experiment.engine.model, config).score(name, x)
        return estimate(Task(experiment.engine.model, make, x, config.seed, config.memory_mib))

    return score


def main() -> None:
    """Print the numbers, and draw them where asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--plot", type=Path, help="draw what is known to this .png")
    plot = parser.parse_args().plot
    torch.set_num_threads(1)
    case = bad_case()
    table = Table("estimator", "nats per datum", "kind", title="AVB without adaptive contrast, digits, 200 test data")
    for name, found in case.estimates.items():
        table.add_row(name, f"{found.value:.2f} ± {found.stderr:.2f}", found.meaning)
    console = Console(width=110)
    console.print(table)
    console.print(f"from q's own Gaussian: {case.naive.verdict}: {case.naive.reason}")
    console.print(f"from the refined one:  {case.refined.verdict} {case.refined.reason}")
    console.print(
        f"adversarial ELBO above AIS: {case.excess.difference:.2f} ± {case.excess.stderr:.2f}; "
        f"not a bound: {case.excess.not_a_bound}"
    )
    told = case.diagnosis
    console.print(
        f"KL {told.kl:.2f} against its floor {told.kl_floor:.2f}: violation {told.floor_violation:.2f}; "
        f"unverifiable codes {told.unverifiable:.0%}"
    )
    if plot is not None:
        drawn = bounds(list(case.estimates.values()), case.refined.bracket)
        plot.write_bytes(to_png(caption(drawn, f"{case.subject}, test data")))


if __name__ == "__main__":
    main()
