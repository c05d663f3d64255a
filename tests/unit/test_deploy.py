"""Each file of deploy/ against the schema of whoever reads it; each check refuses a file that was spoilt on purpose."""

import copy
import json
import re
import shutil
import stat
import subprocess
import sysconfig
import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from packaging.requirements import Requirement
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
CLOUDS = ("aws", "gcp")
COMPOSE = json.loads(files("check_jsonschema").joinpath("builtin_schemas/vendor/compose-spec.json").read_text())
KUBERAY = yaml.safe_load(Path(__file__).with_name("kuberay.yaml").read_text())
SECRETS = {
    "credentials",
    "mlflow_password",
    "mlflow_session_key",
    "pgpass",
    "postgres_password",
    "ray_token",
    "s3_credentials",
}


def read(name: str) -> Any:
    return yaml.safe_load((DEPLOY / name).read_text())


def change(tree: Any, path: str, value: Any = None) -> Any:
    """A copy in which one thing is different; without a value, it is missing."""
    changed = copy.deepcopy(tree)
    *above, last = [int(key) if key.isdigit() else key for key in path.split("/")]
    node = changed
    for key in above:
        node = node[key]
    if value is None:
        del node[last]
    else:
        node[last] = value
    return changed


def ray_accepts(cluster: dict[str, Any]) -> None:
    """What `ray up` does with a file before it calls anybody."""
    validate_config(prepare_config(copy.deepcopy(cluster)))


def kubernetes_accepts(thing: dict[str, Any]) -> None:
    if thing["apiVersion"] != "ray.io/v1":
        kubernetes_validate.validate(thing, kubernetes_validate.latest_version(), strict=True)
        return
    jsonschema.validate(thing, {"$defs": KUBERAY["$defs"], **KUBERAY[thing["kind"]]})
    spec = thing["spec"]
    cluster = spec.get("rayClusterSpec", spec)
    groups = [cluster[name] for name in ("headGroupSpec",) if name in cluster] + cluster.get("workerGroupSpecs", [])
    templates = [group["template"] for group in groups] + [spec.get("submitterPodTemplate", {})]
    for template in templates:
        pod = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": thing["metadata"], "template": template}
        kubernetes_validate.validate(pod, kubernetes_validate.latest_version(), strict=True)


def compose_accepts(services: dict[str, Any]) -> None:
    jsonschema.Draft202012Validator(COMPOSE).validate(services)


@pytest.mark.parametrize("name", [*(f"{cloud}.yaml" for cloud in CLOUDS), "../ray_cluster.yaml"])
def test_ray_accepts_the_clusters(name):
    ray_accepts(read(name))


@pytest.mark.parametrize("cloud", CLOUDS)
@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("max_worker", 2),
        ("max_workers", 1),  # less than the sum of min_workers
        ("head_node_type", "haed"),
        ("docker/container_name", None),
        ("available_node_types/gpu/min_workers", "two"),
        ("available_node_types/gpu/min_worker", 2),
        ("initialization_commands", "sudo mount"),
        ("provider/type", None),
    ],
)
def test_ray_refuses_what_is_wrong(cloud, path, value):
    with pytest.raises((jsonschema.ValidationError, ValueError, AssertionError, KeyError)):
        ray_accepts(change(read(f"{cloud}.yaml"), path, value))


@pytest.mark.parametrize("cloud", CLOUDS)
def test_a_search_waits_for_the_nodes_that_ray_starts(cloud):
    cluster = read(f"{cloud}.yaml")
    nodes = 1 + sum(node.get("min_workers", 0) for node in cluster["available_node_types"].values())
    assert cluster["docker"]["head_run_options"] == [f"--env AVB_NODES={nodes}"]
    assert cluster["max_workers"] == nodes - 1


@pytest.mark.parametrize("cloud", CLOUDS)
def test_the_dashboard_is_the_heads_alone(cloud):
    assert any("--dashboard-host=127.0.0.1" in command for command in read(f"{cloud}.yaml")["head_start_ray_commands"])


@pytest.mark.parametrize("name", ["kuberay.yaml", "kuberay_job.yaml"])
def test_kubernetes_accepts_what_is_applied(name):
    things = list(yaml.safe_load_all((DEPLOY / name).read_text()))
    assert {thing["kind"] for thing in things} & {"RayCluster", "RayJob"}
    for thing in things:
        kubernetes_accepts(thing)


@pytest.mark.parametrize(
    ("name", "path", "value"),
    [
        ("kuberay.yaml", "0/spec/accessModes", "ReadWriteMany"),
        ("kuberay.yaml", "0/spec/storageclass", "nfs"),
        ("kuberay.yaml", "1/metadata/name", "avb" * 18),
        ("kuberay.yaml", "1/metadata/label", {"for": "avb"}),
        ("kuberay.yaml", "1/spec/authOptions/mode", "tokens"),
        ("kuberay.yaml", "1/spec/rayVersion", None),
        ("kuberay.yaml", "1/spec/managedBy", "avb"),
        ("kuberay.yaml", "1/spec/autoscalerOptions", {"version": 2}),
        ("kuberay.yaml", "1/spec/upgradeStrategy", {"type": "Rolling"}),
        ("kuberay.yaml", "1/spec/headGroupSpec/template", None),
        ("kuberay.yaml", "1/spec/headGroupSpec/template/spec/volumes/0/name", None),
        ("kuberay.yaml", "1/spec/workerGroupSpecs/0/replica", 2),
        ("kuberay.yaml", "1/spec/workerGroupSpecs/0/replicas", "2"),
        ("kuberay.yaml", "1/spec/workerGroupSpecs/0/maxReplicas", 2**31),
        ("kuberay.yaml", "1/spec/workerGroupSpecs/0/scaleStrategy", {"workersToDelete": 1}),
        ("kuberay.yaml", "1/spec/workerGroupSpecs/0/template/spec/containers/0/volumeMounts/0/path", "/mnt"),
        ("kuberay_job.yaml", "0/spec/clusterSelector", None),
        ("kuberay_job.yaml", "0/spec/entrypoint", ["python"]),
        ("kuberay_job.yaml", "0/spec/backoffLimit", 1),  # not on a cluster that others have
        ("kuberay_job.yaml", "0/spec/preRunningDeadlineSeconds", 0),
        ("kuberay_job.yaml", "0/spec/deletionStrategy", {"onSuccess": {"policy": "DeleteSelf"}}),
        ("kuberay_job.yaml", "0/spec/deletionStrategy", {"deletionRules": []}),
        ("kuberay_job.yaml", "0/spec/submitterPodTemplate", {"spec": {"container": []}}),
        ("kuberay_job.yaml", "0/metadata/generateName", "avb_search-"),
    ],
)
def test_kubernetes_refuses_what_is_wrong(name, path, value):
    changed = change(list(yaml.safe_load_all((DEPLOY / name).read_text())), path, value)
    with pytest.raises((jsonschema.ValidationError, kubernetes_validate.ValidationError)):
        kubernetes_accepts(changed[int(path[0])])


@pytest.mark.parametrize(
    ("path", "value"),
    [("rayVersion", None), ("workerGroupSpecs/0/replica", 2), ("headGroupSpec/template/spec/volumes/0/name", None)],
)
def test_a_job_with_a_cluster_of_its_own_is_checked_as_a_cluster_is(path, value):
    _, cluster = yaml.safe_load_all((DEPLOY / "kuberay.yaml").read_text())
    job = change(change(read("kuberay_job.yaml"), "spec/clusterSelector"), "spec/rayClusterSpec", cluster["spec"])
    kubernetes_accepts(job)
    with pytest.raises((jsonschema.ValidationError, kubernetes_validate.ValidationError)):
        kubernetes_accepts(change(job, f"spec/rayClusterSpec/{path}", value))


def test_the_pods_are_what_the_cluster_says():
    claim, cluster = yaml.safe_load_all((DEPLOY / "kuberay.yaml").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needs = [Requirement(line) for line in project["dependencies"]]
    assert next(need for need in needs if need.name == "ray").specifier.contains(cluster["spec"]["rayVersion"])
    head = cluster["spec"]["headGroupSpec"]["template"]["spec"]
    worker = cluster["spec"]["workerGroupSpecs"][0]["template"]["spec"]
    assert claim["metadata"]["name"] == head["volumes"][0]["persistentVolumeClaim"]["claimName"]
    assert worker["volumes"] == head["volumes"] and worker["containers"][0]["env"] == head["containers"][0]["env"]
    assert worker["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 1


def test_compose_accepts_the_services():
    compose_accepts(read("compose.yaml"))


@pytest.mark.parametrize(
    ("path", "value"),
    [("service", {}), ("services/mlflow/imge", "x"), ("services/mlflow/ports", 5000), ("secrets/pgpass/path", "x"),
     ("services/database/healthcheck/retries", []), ("services/mlflow/depends_on/database/condition", "ready")],
)  # fmt: skip
def test_compose_refuses_what_is_wrong(path, value):
    with pytest.raises(jsonschema.ValidationError):
        compose_accepts(change(read("compose.yaml"), path, value))


def test_secrets_are_files_that_nobody_else_reads(tmp_path):
    folder = tmp_path / "with space" / "secrets"
    made = []
    folder.mkdir(mode=0o700, parents=True)
    (folder / "ray_token").write_text("0123456789abcdef" * 3)  # as it was made before
    (folder / "ray_token").chmod(0o600)
    for _ in range(2):  # run again, it changes nothing
        done = subprocess.run([DEPLOY / "secrets.sh", folder], capture_output=True, text=True, check=True)
        assert done.stdout + done.stderr == ""
        made.append({path.name: path.read_text() for path in folder.iterdir()})
    assert made[0] == made[1] and made[0].keys() == SECRETS
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    for name in ("ray_token", "mlflow_password", "mlflow_session_key", "postgres_password"):
        assert re.fullmatch(r"[0-9a-f]{48}\n", made[0][name]), "a terminal prints it on a line of its own"
    assert made[0]["ray_token"].startswith("0123456789abcdef"), "what is there stays"
    assert f"= {made[0]['mlflow_password']}" in made[0]["credentials"]
    assert made[0]["pgpass"] == f"*:*:*:*:{made[0]['postgres_password']}"
    assert len({made[0][name] for name in ("mlflow_password", "mlflow_session_key", "postgres_password")}) == 3


def test_compose_hands_over_secrets_as_files_only():
    services = read("compose.yaml")
    assert {Path(each["file"]).name for each in services["secrets"].values()} <= SECRETS
    used = {name for service in services["services"].values() for name in service["secrets"]}
    assert used == services["secrets"].keys()
    for service in services["services"].values():
        for name, value in service["environment"].items():
            secret = re.search("PASSWORD|SECRET|KEY|TOKEN", name)
            good = value.startswith("/run/secrets/") if secret else not re.search(r"//[^/@]*:[^/@]*@", value or "")
            assert good, name
        for each in services["secrets"].values():
            assert each["file"].startswith("${HOME}/.config/avb/"), "`ray up` copies deploy/ to all hosts"


@pytest.mark.parametrize(
    ("old", "new"),
    [("", ""), ("USER $UID", "USER root"), ("install --yes", "install"), ("WORKDIR /opt", "WORKDIR opt")],
    ids=["as it is", "root", "asks", "relative"],
)  # fmt: skip
def test_hadolint_accepts_the_image_and_nothing_worse(tmp_path, old, new):
    program = Path(sysconfig.get_path("scripts")) / "hadolint"
    lint = shutil.which("hadolint") or str(program)
    (tmp_path / "Dockerfile").write_text((DEPLOY / "Dockerfile").read_text().replace(old, new))
    done = subprocess.run([lint, "--no-color", "Dockerfile"], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode == 0) == (old == new), done.stdout + done.stderr


def test_what_is_copied_into_the_image_is_there_and_not_ignored():
    kept = {line[1:] for line in (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = re.findall(r"^COPY (.+) \S+$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
    assert {name for line in copied for name in line.split()} == kept
    assert all((ROOT / name).exists() for name in kept)


@pytest.mark.parametrize(("old", "new"), [("", ""), ("ExecStart=", "ExecStrat="), ("%h/avb-service/.venv", "relative")])
def test_systemd_accepts_the_unit_and_nothing_worse(tmp_path, old, new):
    if shutil.which("systemd-analyze") is None:
        pytest.skip("needs systemd-analyze")
    text = (DEPLOY / "mlflow.service").read_text().replace(old, new) if old else (DEPLOY / "mlflow.service").read_text()
    for program in re.findall(r"^ExecStart(?:Pre)?=(\S+)", text.replace("%h", str(tmp_path)), re.MULTILINE):
        if program.startswith("/"):
            Path(program).parent.mkdir(parents=True, exist_ok=True)
            Path(program).write_text("#!/bin/sh\n")
            Path(program).chmod(0o755)
    (tmp_path / "mlflow.service").write_text(text.replace("%h", str(tmp_path)))
    command = ["systemd-analyze", "verify", "--user", "--man=no", "--recursive-errors=no", tmp_path / "mlflow.service"]
    environment = {"PATH": "/usr/bin:/bin", "XDG_RUNTIME_DIR": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    said = [line for line in done.stderr.splitlines() if "mlflow.service" in line]
    assert (said == []) == (old == new), done.stderr


@pytest.mark.parametrize("path", sorted(DEPLOY.iterdir()), ids=lambda path: path.name)
def test_each_file_says_what_it_is_and_names_files_that_exist(path):
    text = path.read_text()
    first = text.removeprefix("#!/usr/bin/env bash\n").lstrip('# "')
    assert len(first.splitlines()[0]) > 20
    for name in re.findall(r"(?<![\w/.-])deploy/([\w.]+)(?![\w/])", text):
        assert (DEPLOY / name).exists() or name == ".env", name
