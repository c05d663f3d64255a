"""Two hundred files with something wrong in each: one clear message, exit code 2, no traceback, nothing started."""

import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from avb_service import cli
from avb_service.distributed import check, cluster
from avb_service.settings import PRESETS, read_preset
from avb_service.tracking import registry, server
from avb_service.trees import Tree, flatten, override

ROOT = Path(__file__).parents[2]
CASES = 200
TRACE = "a file that nobody may write"
TAGS = [
    f"!!python/object/apply:os.system ['touch \"{TRACE}\"']",
    "!!python/name:os.system",
    "!!python/object:os.PathLike {}",
    "!!python/object/new:os.system [true]",
    "!include /etc/passwd",
]
BROKEN = [
    "\n  : [", "\n\tx: 1", "\nx: {y: 1", "\nx: 'unfinished", "\n- a list item in a mapping", "\nx: *nobody",
    "\n%YAML 9.9\n---\n{", "\nx: &x [*x]", "\nx: " + "[" * 4000, "\nx: 2001-99-99", "\nx: 1" + "0" * 5000,
    "\nx: \x07", "\n<<: 3", "\nx: {y: 1, y: 2}",
    "\na: &a [1,2,3,4,5,6,7,8,9]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\n"
    "d: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d]\nf: &f [*e,*e,*e,*e,*e,*e,*e,*e,*e]\n"
    "g: &g [*f,*f,*f,*f,*f,*f,*f,*f,*f]\nh: &h [*g,*g,*g,*g,*g,*g,*g,*g,*g]\n",
]  # fmt: skip
NOT_A_MAPPING = ["", "[]", "- 1\n- 2\n", "just words", "3", "null", "---\na: 1\n---\nb: 2\n", "!!set {a, b}"]
OUTSIDE = [
    "../outside", "/tmp/outside", "..", ".", "a/b", "a\\b", "", "~/x", "-rf", ".hidden", "a b", "$(id)", "a\nb",
]  # fmt: skip

Change = Callable[[random.Random, Tree], str]  # a valid tree, to the text of a file that is wrong


def text(tree: Any) -> str:
    return yaml.safe_dump(tree, sort_keys=False)


def with_unknown_key(chance: random.Random, tree: Tree) -> str:
    sections = [path.rpartition(".")[0] for path in flatten(tree) if not path.startswith(("set.", "file_mounts."))]
    key = chance.choice(["lr_", "Name", "latent-dim", "rouns", "1", "__class__", "x" * 500])
    return text(override(tree, f"{chance.choice(sections)}.{key}".lstrip("."), chance.choice([1, None, {}, [], "x"])))


def with_unknown_key_of_a_cluster(chance: random.Random, tree: Tree) -> str:
    """At the top, where Ray knows all that may be there."""
    key = chance.choice(["file_mount", "Auth", "setup_command", "1", "x" * 500])
    return text({**tree, key: chance.choice([1, {}, []])})


def with_wrong_type(chance: random.Random, tree: Tree) -> str:
    path, value = chance.choice(list(flatten(tree).items()))
    wrong = [{"a": 1}, [[1]], *(["many"] if isinstance(value, (int, float, list)) else [])]
    return text(override(tree, path, chance.choice(wrong)))


def one_of(**values: list[Any]) -> Change:
    """A value at a path; `__` stands for the dot."""

    def change(chance: random.Random, tree: Tree) -> str:
        path, listed = chance.choice(list(values.items()))
        return text(override(tree, path.replace("__", "."), chance.choice(listed)))

    return change


def with_broken_yaml(chance: random.Random, tree: Tree) -> str:
    return text(tree) + chance.choice(BROKEN)


def with_tag(chance: random.Random, tree: Tree) -> str:
    return text(tree) + f"\n{chance.choice(['x', *tree])}: {chance.choice(TAGS)}\n"


def that_is_no_mapping(chance: random.Random, tree: Tree) -> str:
    return chance.choice(NOT_A_MAPPING)


def cut_off(chance: random.Random, tree: Tree) -> str:
    """In the middle of a quoted word, as an interrupted copy leaves it."""
    lines = text(tree).splitlines()
    return "\n".join(lines[: chance.randrange(len(lines))]) + '\nnote: "a wo'


def without(*sections: str) -> Change:
    """One of them is missing."""

    def change(chance: random.Random, tree: Tree) -> str:
        missing = chance.choice(sections)
        return text({key: value for key, value in tree.items() if key != missing})

    return change


ANY = (with_broken_yaml, with_tag, that_is_no_mapping, cut_off)
OUT_OF_RANGE = one_of(
    training__rounds=[0, -5, 1.5, float("inf"), True],
    training__batch_size=[0, -1],
    training__seed=[-1],
    training__ema=[0, 1, 2.0, float("nan")],
    training__logical_workers=[0, 7],
    training__dtype=["float8", 32],
    tracking__plots_every=[0],
    scaling__workers=[0, -2, 64],
    scaling__cpus_per_worker=[0, -1, float("inf")],
    scaling__max_failures=[-1],
    scaling__collective_timeout_s=[0, float("nan")],
    likelihood__validation_data=[0, -3],
    algorithm__name=["vae2", "", None, "../vae"],
    data__name=["digit", ""],
    data__binarisation=["sometimes"],
    data__levels=[0, 256, -1, 1.5, True, "pixels", [255], {}, 16],
)
INCOMPATIBLE = one_of(
    scaling=[{"workers": 3}, {"workers": 2, "min_workers": 3}],
    training__logical_workers=[3, 1000],
    algorithm__model__options=[{"momentum": 0.9}, {"no such": 1}],
    data__other=[{"name": "nothing"}, 3],
)
LEAVING = one_of(tracking__model=["../outside", "/etc/x", "a/b", "", "a:b", "50%"], data__name=OUTSIDE)
PRESET = (
    *ANY,
    with_unknown_key,
    with_wrong_type,
    OUT_OF_RANGE,
    OUT_OF_RANGE,
    INCOMPATIBLE,
    LEAVING,
    without("algorithm", "data"),
)
SPACE = (
    *ANY, with_unknown_key, with_wrong_type, without("preset"), without("space"),
    one_of(name=OUTSIDE), one_of(model=["../outside", "a/b", ""], preset=["../../etc/passwd", "/etc/passwd", "no", []]),
    one_of(trials=[0, -1, 3, 1.5], concurrent=[0], seed=[-1], baselines=[["no"], "vae_digits", 3],
           scheduler=[{"asha": {"grace": 0}}, {"asha": {"reduction": 1}}, {"sync": {}}]),
    one_of(space=[{}, [], None, {"": {"choice": [1]}}, {"algorithm.latent_dims": {"choice": [1]}}]),
    one_of(space=[{"algorithm.latent_dim": domain} for domain in (
        {"choice": []}, {"choice": [2], "uniform": [0, 1]}, {"randint": [5, 5]}, {"choice": [0]}, {}, None)]),
    one_of(space=[{"algorithm.model.lr": domain} for domain in (
        {"loguniform": [1.0e-3, 1.0e-5]}, {"loguniform": [0, 1]}, {"uniform": [-1, 1]}, {"normal": [0, 1]})]),
    one_of(objective=[{"metric": "train/model/loss"}, {"metric": "validation/parzen"}, {"mode": "min"}]),
)  # fmt: skip
CLUSTER = (
    *ANY, with_unknown_key_of_a_cluster, without("provider"), without("auth"), without("setup_commands"),
    one_of(provider__type=["aws", "", None, 3], provider__head_ip=["", None, 3, [], "-oProxyCommand=id", "a b", "../x"],
           provider__worker_ips=["10.0.0.1", None, [1], [["10.0.0.1"]], ["192.168.1.10"], ["-oX"], ["10.0.0.1"] * 2]),
    one_of(auth__ssh_user=["", None, 3, "-oProxyCommand=id", "a b"],
           auth__ssh_private_key=["", None, 3, "/no/such/key", "..", "~nobody-here/key", "a\0b"],
           auth__ssh_proxy_command=[3, ["nc"], {}]),
    one_of(setup_commands=[[], None, "install.sh", ["echo"], [3], ["bash deploy/install.sh"], {"a": 1},
                           ["bash deploy/install.sh mnt/avb"], ['bash deploy/install.sh "/mnt/avb']],
           provider=[None, [], "local"], auth=[None, [], "root"]),
)  # fmt: skip


KINDS = {"preset": PRESET, "space": SPACE, "cluster": CLUSTER}
CHANGES = [(kind, change) for kind, changes in KINDS.items() for change in changes]


def written(kind: str, chance: random.Random, change: Change, folder: Path) -> list[str]:
    """The file, and the command that reads it."""
    if kind == "preset":
        tree = read_preset(chance.choice([name for name in PRESETS.own if name.endswith("_digits")]))
    elif kind == "space":
        tree = yaml.safe_load((ROOT / "tune_spaces" / "digits_smoke.yaml").read_text())
    else:
        tree = yaml.safe_load((ROOT / "ray_cluster.yaml").read_text())
        (folder / "key").touch()
        tree["auth"]["ssh_private_key"] = str(folder / "key")
    path = folder / "bad.yaml"
    path.write_text(change(chance, tree), encoding="utf-8")
    return {"preset": ["train", str(path)], "space": ["tune", "--space", str(path)],
            "cluster": ["cluster", "check", str(path)]}[kind]  # fmt: skip


@pytest.fixture
def nothing_starts(monkeypatch, tmp_path):
    """Whatever a command would do after it has read its file is a failure."""

    def started(*arguments: object, **options: object) -> None:
        pytest.fail("something was started")

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("AVB_TRACEBACK", raising=False)
    for module, name in ((cluster, "cluster"), (check, "check"), (server, "connect"), (registry, "connect")):
        monkeypatch.setattr(module, name, started)


@pytest.mark.parametrize("number", range(CASES))
def test_a_bad_file_is_one_clear_message(number, nothing_starts, tmp_path, monkeypatch, capsys):
    kind, change = CHANGES[number % len(CHANGES)]
    monkeypatch.setattr(sys, "argv", ["avb", *written(kind, random.Random(number), change, tmp_path)])
    with pytest.raises(SystemExit) as left:
        cli.main()
    message = capsys.readouterr().err
    assert left.value.code == 2, message
    assert message.startswith("error: ") and "Traceback" not in message
    assert "bad.yaml" in message or "preset" in message, message
    assert len(message) < 20_000
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.yaml", "key"][: 1 + (kind == "cluster")]


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_file_with_nothing_wrong_would_start_something(kind, nothing_starts, tmp_path, monkeypatch):
    command = written(kind, random.Random(0), lambda chance, tree: text(tree), tmp_path)
    monkeypatch.setattr(sys, "argv", ["avb", *command])
    with pytest.raises(pytest.fail.Exception, match="something was started"):
        cli.main()
