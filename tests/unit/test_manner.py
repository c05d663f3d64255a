"""How turns are played on the machine at hand: what is tried, what is refused, and what a run keeps of it."""

import pytest
import torch

from avb_service.errors import UserError
from avb_service.fitting import Fit
from avb_service.report import tags
from avb_service.training import manner as module
from avb_service.training.manner import Manner, fastest
from avb_service.training.precision import InBfloat16, has_bfloat16

CPU, GPU = torch.device("cpu"), torch.device("cuda")
ROUNDS = 100_000
OPEN = Manner("auto", "auto")


@pytest.fixture
def able(monkeypatch, tmp_path):
    """A machine that has instructions for bfloat16, and a compiler."""
    (tmp_path / "c++").touch(mode=0o755)
    monkeypatch.setenv("CXX", str(tmp_path / "c++"))
    monkeypatch.setattr(module, "has_bfloat16", lambda device: True)


def choose(asked: Manner, device: torch.device, rounds: int, **seconds: float) -> tuple[Manner, list[Manner]]:
    """The choice, and what was tried for it, where a manner takes the seconds of `capture_precision`."""
    tried = []

    def taken(manner: Manner) -> float:
        tried.append(manner)
        return seconds["_".join(manner)]

    return fastest(asked, device, rounds, taken), tried


def test_the_fastest_is_taken_and_the_compiler_is_tried_in_the_better_precision_alone(able):
    times = {"off_float32": 0.010, "off_bf16": 0.008, "compile_bf16": 0.005}
    chosen, tried = choose(OPEN, CPU, ROUNDS, **times)
    assert chosen == ("compile", "bf16") == tried[-1] and len(tried) == 3
    chosen, _ = choose(OPEN, CPU, ROUNDS, **{**times, "compile_bf16": 0.009})
    assert chosen == ("off", "bf16"), "it was slower"


def test_the_compiler_is_not_tried_where_too_little_training_is_left_for_it_to_pay(able):
    chosen, tried = choose(OPEN, CPU, 1000, off_float32=0.010, off_bf16=0.012)
    assert chosen == ("off", "float32") and [manner.capture for manner in tried] == ["off", "off"]


def test_what_is_asked_for_is_not_weighed(able):
    assert choose(Manner("compile", "auto"), CPU, 10, compile_float32=3.0, compile_bf16=2.0)[0] == ("compile", "bf16")
    chosen, tried = choose(Manner("auto", "float32"), GPU, 10, off_float32=3.0, graph_float32=1.0)
    assert chosen == ("graph", "float32") and len(tried) == 2, "on a GPU it is a graph"


def test_what_the_machine_lacks_is_not_tried(monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", str(tmp_path / "no compiler"))
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True}, raising=False)
    assert not has_bfloat16(CPU)
    assert choose(OPEN, CPU, ROUNDS, off_float32=1.0) == (("off", "float32"), [("off", "float32")])


@pytest.mark.parametrize(("settings", "message"), [
    ({"training.capture": "graph"}, "training.capture: graph needs a GPU, and the model is on the cpu; set scaling"),
    ({"training.capture": "compile"}, r"compile needs a C\+\+ compiler, and .*no compiler is not there; install it"),
    ({"training.precision": "bf16"}, "this cpu has no instructions for bfloat16 and would emulate them, slower than"),
    ({"training.precision": "auto", "training.dtype": "float64"}, "precision: auto is for training.dtype float32"),
])  # fmt: skip
def test_what_the_machine_lacks_is_named_before_anything_starts(small, settings, message, monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", str(tmp_path / "no compiler"))
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict, raising=False)
    with pytest.raises(UserError, match=message):
        Fit(small("vae", settings), tmp_path)


def test_layers_multiply_in_bfloat16_and_everything_else_is_float32():
    torch.manual_seed(0)
    layers = torch.nn.Sequential(torch.nn.Linear(40, 30), torch.nn.Softplus(), torch.nn.Linear(30, 1))
    x = torch.randn(50, 40)
    plain = layers(x)
    with InBfloat16():
        lowered = layers(x)
        assert torch.equal(x.double() @ x.double().mT, torch.matmul(x.double(), x.double().mT)), "no layer's"
    assert lowered.dtype == torch.float32 and 0 < (plain - lowered).abs().max() < 0.02
    lowered.sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in layers.parameters())


def test_a_run_goes_on_as_it_was_begun_whatever_would_be_faster_now(small, able, monkeypatch, tmp_path):
    settings = {"training.precision": "auto", "training.rounds": 6, "training.report_every": 3}
    config = small("avb_ac", settings)

    def begin(preferred: str, folder: str) -> Fit:
        run = Fit(config, tmp_path / folder)
        monkeypatch.setattr(run.engine, "seconds_a_round", lambda manner: 1.0 + (manner.precision != preferred))
        return run

    whole = begin("bf16", "whole")
    whole.run(lambda round_, metrics: whole.store.folder.rename(tmp_path / "kept") if round_ == 3 else None)
    resumed = begin("float32", "kept")
    resumed.resume()
    assert resumed.engine.round == 3 and resumed.engine.manner == ("off", "bf16")
    resumed.run()
    assert tags(resumed.model)["training.precision"] == "bf16", "a run's page says how it is played"
    other = begin("float32", "other")
    other.run()
    ends = [run.engine.algorithm.state_dict() for run in (whole, resumed, other)]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    assert not all(torch.equal(ends[0][name], ends[2][name]) for name in ends[0])
    monkeypatch.setattr(module, "has_bfloat16", lambda device: False)
    with pytest.raises(UserError, match="no instructions for bfloat16"):
        begin("bf16", "whole").resume()


def test_to_try_takes_no_step(small, tmp_path):
    plain = Fit(small("avb_ac", {"training.rounds": 4}), tmp_path / "plain")
    plain.run()
    tried = Fit(small("avb_ac", {"training.rounds": 4, "training.capture": "auto"}), tmp_path / "tried")
    tried.run()
    assert tried.engine.manner == ("off", "float32")
    for name, tensor in plain.engine.algorithm.state_dict().items():
        assert torch.equal(tensor, tried.engine.algorithm.state_dict()[name]), name
