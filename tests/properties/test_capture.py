"""A recorded play computes what the method has written: to the bit operation by operation, and nearly so compiled."""

import pytest
import torch
from torch import Tensor, nn

from avb_service.algorithm import Algorithm, Batch, DataSpec, Loss, Player
from avb_service.fitting import Fit
from avb_service.optim import TurnConfig
from avb_service.seeding import reseed
from avb_service.testing.methods import records
from avb_service.training.capture import Graph, Program
from avb_service.training.config import TrainingConfig
from avb_service.training.loop import Engine
from avb_service.training.recording import Uncapturable

CPU = torch.device("cpu")
CHANGING = {  # what makes a loss depend on the round, for the methods that have it
    "kl_warmup": 7,
    "warmup": 7,
    "anneal": 7,
    "penalty": 0.5,
    "cycle_noise": 0.1,
    "straight_through": True,
}


def changing(small, method: str) -> Fit:
    section = type(small(method).algorithm).model_fields
    overrides = {f"algorithm.{key}": value for key, value in CHANGING.items() if key in section}
    return small(method, {**overrides, "training.dtype": "float64", "training.logical_workers": 4})


def test_a_recorded_play_is_the_written_one_to_the_bit(small, method, tmp_path):
    assert records(changing(small, method), tmp_path) == []


class Asking(Algorithm):
    """One linear map, and a loss that some do not know how to record."""

    def __init__(self, law: str) -> None:
        super().__init__(None, DataSpec((1, 1, 2), "real", 0, torch.zeros(1, 1, 2)))
        self.map, self.law = nn.Linear(2, 2), law
        self.register_buffer("count", torch.ones(()))

    def players(self) -> tuple[Player, ...]:
        return (Player(name="model", objective=self.loss, networks=(self.map,), turn=TurnConfig()),)

    def loss(self, batch: Batch) -> Loss:
        h = self.map(batch.x)
        weight = {
            "a number": lambda: h.mean().item(),
            "a weight": lambda: self.map.weight[0, 0].item(),
            "a buffer": lambda: float(self.count),
            "an array": lambda: torch.from_numpy(self.map.weight.detach().numpy().copy()).sum(),
            "chance": lambda: torch.bernoulli(h.detach().sigmoid()),
            "a fair coin": lambda: torch.bernoulli(torch.full_like(h, 0.5)),
        }[self.law]()
        value = (weight * h).square().mean()
        return Loss(value, {"loss": value.detach()})

    def sample(self, n: int) -> Tensor:
        return self.map(torch.randn(n, 1, 1, 2))


def source(index: int, worker: int) -> tuple[Tensor, None]:
    return torch.full((3, 1, 1, 2), 1.0 + index), None


@pytest.mark.parametrize(("law", "reason"), [
    ("a number", "value out of a tracing tensor"), ("chance", "aten.bernoulli.default draws from a law that depends"),
    ("a weight", "value out of a tracing tensor"), ("a buffer", "it holds a number"), ("an array", "it holds a number"),
])  # fmt: skip
def test_what_cannot_be_recorded_is_named_and_played_as_it_is_written(law, reason, caplog):
    plain, captured = (
        Engine(algorithm, source, TrainingConfig(rounds=3, batch_size=3, capture=capture))
        for algorithm, capture in zip(twins(law), ("off", "compile"), strict=True)
    )
    with pytest.raises(Uncapturable, match=reason):
        Program(captured.turns[0], captured.algorithm, next(captured._slices(0, ()))[1], backend="eager")
    plain.run(lambda report: None)
    captured.run(lambda report: None)
    assert "player 'model' is not captured and plays as it is written: " in caplog.text
    assert all(
        torch.equal(a, b) for a, b in zip(plain.algorithm.parameters(), captured.algorithm.parameters(), strict=True)
    )


def twins(law: str) -> tuple[Asking, Asking]:
    torch.manual_seed(0)
    one, other = Asking(law), Asking(law)
    other.load_state_dict(one.state_dict())
    return one, other


def test_a_law_that_never_changes_is_recorded():
    engine = Engine(Asking("a fair coin"), source, TrainingConfig(rounds=3, batch_size=3))
    _, batch = next(engine._slices(0, ()))
    program = Program(engine.turns[0], engine.algorithm, batch, backend="eager")
    coins = set()
    for seed in range(20):
        reseed(CPU, seed)
        one = program(batch)
        reseed(CPU, seed)
        assert torch.equal(*map(torch.cat, (one.gradient, engine.turns[0].eager(batch).gradient)))
        coins.add(one.report[0].item())
    assert len(coins) > 3, "drawn anew each time"


def test_a_compiled_run_trains_the_same_model_and_resumes_to_the_same_bits(small, tmp_path):
    training = {"training.dtype": "float64", "training.rounds": 6, "training.report_every": 3}
    overrides = {**training, "algorithm.kl_warmup": 5}
    plain = Fit(small("avb_ac", overrides), tmp_path / "plain")
    plain.run()
    config = small("avb_ac", {**overrides, "training.capture": "compile"})
    compiled = Fit(config, tmp_path / "compiled")
    compiled.run(lambda round_, metrics: compiled.store.folder.rename(tmp_path / "kept") if round_ == 3 else None)
    for one, other in zip(plain.engine.algorithm.parameters(), compiled.engine.algorithm.parameters(), strict=True):
        assert (one - other).abs().max() < 1e-9
    resumed = Fit(config, tmp_path / "kept")
    resumed.resume()
    assert resumed.engine.round == 3
    resumed.run()
    for one, other in zip(resumed.engine.algorithm.parameters(), compiled.engine.algorithm.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="a CUDA graph needs a GPU")
def test_a_graph_computes_what_the_method_has_written_to_the_bit(small, method, tmp_path):
    engine = Fit(changing(small, method), tmp_path, device="cuda").engine
    for turn in engine.turns:
        first, *others = [batch for _, batch in engine._slices(0, engine._draw_shared(0))]
        graph = Graph(turn, engine.algorithm, first)
        for seed, batch in enumerate(others):
            written = []
            for play in (turn.eager, graph):
                reseed(first.x.device, seed)
                written.append(play(batch))
            one, other = written
            assert torch.equal(torch.cat(one.gradient), torch.cat(other.gradient))
            assert torch.equal(one.report, other.report)
