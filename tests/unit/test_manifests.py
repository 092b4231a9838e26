"""Manifests for KubeRay, Slurm and Ray's launcher: valid by their own schemas, and nothing of the file can escape."""

from __future__ import annotations

import gzip
import json
import os
import re
import shlex
import stat
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray.autoscaler
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.base import HEALTH, ClusterError
from cluster.demand import Demand
from cluster.kuberay import raycluster, rayjob
from cluster.ray_up import autoscaler
from cluster.slurm import sbatch
from sweeps.cli import main

FIXTURES = Path(__file__).with_name("fixtures")
CRD = FIXTURES / "rayjob.v1.json.gz"
"""The schema of ray.io/v1 RayJob, without descriptions, of KubeRay feeaf72fa (2026-08-19, Apache-2.0)."""
KUBERNETES = FIXTURES / "kubernetes.v1.37.json.gz"
"""Strict schemas of ConfigMap and NetworkPolicy, without descriptions, of Kubernetes 1.37 as kubernetes-validate 1.37.0 has them (Apache-2.0)."""
DEMAND = Demand(
    name="GSM8K_lora.v2",
    nodes=3,
    cpus=8,
    gpus=2,
    file="sweep.yaml",
    text="name: x\nenv: {HF_TOKEN: ${HF_TOKEN}}\n",
    folder="/data/my sweeps",
    memory_gb=32,
    secrets=("HF_TOKEN",),
    hours=5.5,
    image="registry/stockpot:1",
    ray="2.60.0",
    names_storage=False,
    sets=("budget.trials=4",),
)


def closed(schema: Any) -> Any:
    """The same schema where an unknown key is an error, as the API server's strict validation has it."""
    if isinstance(schema, dict):
        found = {key: closed(value) for key, value in schema.items()}
        if "properties" in found and not found.get("x-kubernetes-preserve-unknown-fields"):
            found.setdefault("additionalProperties", False)
        return found
    return [closed(one) for one in schema] if isinstance(schema, list) else schema


@pytest.fixture(scope="module")
def crd() -> jsonschema.Draft7Validator:
    schema = closed(json.loads(gzip.decompress(CRD.read_bytes())))
    schema["properties"]["metadata"] = {"type": "object"}
    return jsonschema.Draft7Validator(schema)


def refusals(document: dict[str, Any]) -> list[str]:
    """What Kubernetes says against a ConfigMap or a NetworkPolicy."""
    schemas = json.loads(gzip.decompress(KUBERNETES.read_bytes()))
    return [error.message for error in jsonschema.Draft7Validator(schemas[document["kind"]]).iter_errors(document)]


@pytest.mark.parametrize("write", [rayjob, raycluster])
def test_what_goes_with_it_is_valid_by_kubernetes_schema(write: Callable[[Demand, str], str]) -> None:
    parts = [part for part in yaml.safe_load_all(write(DEMAND, "data")) if not part["kind"].startswith("Ray")]
    assert [part["kind"] for part in parts] == ["ConfigMap", "NetworkPolicy"] if write is rayjob else ["NetworkPolicy"]
    assert [refusals(part) for part in parts] == [[] for _ in parts]
    parts[-1]["spec"]["podSelectors"] = {}
    assert refusals(parts[-1]), "a typo is told, so the schema is closed"


def test_the_ray_job_is_valid_by_kuberays_schema(crd: jsonschema.Draft7Validator) -> None:
    config, job, policy = yaml.safe_load_all(rayjob(DEMAND, "data"))
    assert [error.message for error in crd.iter_errors(job)] == []
    job["spec"]["rayClusterSpec"]["authOption"] = {}
    assert [error.message for error in crd.iter_errors(job)], "a typo is told, so the schema is closed"
    assert config["data"] == {"sweep.yaml": DEMAND.text}
    assert job["metadata"]["name"] == policy["metadata"]["name"] == "gsm8k-lora-v2"
    assert job["spec"]["activeDeadlineSeconds"] == 19800
    words = shlex.split(job["spec"]["entrypoint"])
    assert words[:4] == ["stockpot", "submit", "/stockpot/sweep.yaml", "--or-resume"]
    assert "storage=/stockpot/stockpot-runs" in words
    spec = job["spec"]["rayClusterSpec"]
    (group,) = spec["workerGroupSpecs"]
    assert (group["replicas"], spec["headGroupSpec"]["rayStartParams"]["num-cpus"]) == (3, "0")
    (worker,) = group["template"]["spec"]["containers"]
    assert worker["resources"]["limits"] == {"cpu": "8", "memory": "32Gi", "nvidia.com/gpu": "2"}
    assert spec["authOptions"] == {"mode": "token"}


def test_the_cluster_that_stays_is_valid_by_kuberays_schema(crd: jsonschema.Draft7Validator) -> None:
    text = raycluster(DEMAND, "data")
    cluster, policy = yaml.safe_load_all(text)
    as_job = {"apiVersion": "ray.io/v1", "kind": "RayJob", "spec": {"rayClusterSpec": cluster["spec"]}}
    assert [error.message for error in crd.iter_errors(as_job)] == [], "a RayJob's cluster has the same schema"
    assert (cluster["kind"], cluster["metadata"]["name"]) == ("RayCluster", "gsm8k-lora-v2")
    assert cluster["spec"]["authOptions"] == {"mode": "token"}
    assert policy["spec"]["podSelector"]["matchLabels"] == {"stockpot/sweep": "gsm8k-lora-v2"}
    assert "configMap" not in text, "no sweep's file is part of it"
    assert "--address http://127.0.0.1:8265" in text
    assert "kubectl get secret gsm8k-lora-v2 -o jsonpath={.data.auth_token}" in text


def test_a_job_that_goes_on_has_a_name_and_a_command_of_its_own(crd: jsonschema.Draft7Validator) -> None:
    words = ["stockpot", "resume", "/stockpot/stockpot-runs/a b", "--address", "auto"]
    job, policy = yaml.safe_load_all(rayjob(replace(DEMAND, text="", job="gsm8k-1a2b3c"), "data", words=words))
    assert [error.message for error in crd.iter_errors(job)] == []
    assert job["metadata"]["name"] == policy["metadata"]["name"] == "gsm8k-1a2b3c"
    assert shlex.split(job["spec"]["entrypoint"]) == words
    (container,) = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"]
    assert [place["name"] for place in container["volumeMounts"]] == ["volume"]
    assert {"name": "gsm8k-lora-v2-secrets", "key": "HF_TOKEN"} in [
        one["valueFrom"]["secretKeyRef"] for one in container["env"] if "valueFrom" in one
    ], "the Secret is the sweep's, the same for all its jobs"


def test_secrets_are_named_and_stand_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "planted-3f9c")
    for text in (rayjob(DEMAND, "data"), sbatch(DEMAND), autoscaler(DEMAND, user="me", hosts=["a", "b"])):
        assert "HF_TOKEN" in text
        assert "planted" not in text


def test_every_pod_has_the_secrets_for_trials_read_them_where_they_run() -> None:
    _, job, _ = yaml.safe_load_all(rayjob(DEMAND, "data"))
    cluster = job["spec"]["rayClusterSpec"]
    wanted = {"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "gsm8k-lora-v2-secrets", "key": "HF_TOKEN"}}}
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        (container,) = group["template"]["spec"]["containers"]
        assert wanted in container["env"], container["name"]


def test_the_launchers_nodes_read_the_secrets_from_a_private_file_when_ray_starts(tmp_path: Path) -> None:
    hostile = 'it\'s "$(touch pwned)" a `word`; \\ and more\nof it'
    demand = replace(DEMAND, secrets=("HF_TOKEN", "OTHER"))
    text = autoscaler(demand, user="me", hosts=["a", "b"])
    make = next(
        line.removeprefix("#   ") for line in text.splitlines() if "umask 077; python -c" in line and ".env" in line
    )
    home, bin_folder = tmp_path / "home", tmp_path / "bin"
    (home / ".stockpot").mkdir(parents=True)
    bin_folder.mkdir()
    (bin_folder / "ray").write_text('#!/bin/sh\nprintf "%s|%s" "$HF_TOKEN" "$OTHER"\n')
    (bin_folder / "ray").chmod(0o755)
    path = os.pathsep.join([str(bin_folder), str(Path(sys.executable).parent), os.environ["PATH"]])
    plain = {name: value for name, value in os.environ.items() if name not in demand.secrets}
    own = {**plain, "HOME": str(home), "PATH": path}
    has = {**own, "HF_TOKEN": hostile, "OTHER": "two"}
    subprocess.run(["sh", "-ec", make], env=has, check=True, cwd=tmp_path)
    file = home / ".stockpot" / "gsm8k-lora-v2.env"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    body = yaml.safe_load(text)
    assert "~/.stockpot/gsm8k-lora-v2.env" in body["file_mounts"]
    assert "chmod 600 ~/.stockpot/gsm8k-lora-v2.env" in body["setup_commands"]
    for which in ("head", "worker"):
        (start,) = body[f"{which}_start_ray_commands"]
        said = subprocess.run(["bash", "-c", start], env=own, cwd=tmp_path, capture_output=True, check=True).stdout
        assert said.decode() == f"{hostile}|two", which
    assert not (tmp_path / "pwned").exists()
    without = yaml.safe_load(autoscaler(replace(DEMAND, secrets=()), user="me", hosts=["a", "b"]))
    assert list(without["file_mounts"]) == ["~/.stockpot/ray-token"]
    assert ".env" not in str(without)


def test_nodes_are_lost_sooner_than_by_rays_own_setting_and_connections_last_longer() -> None:
    wanted = {f"{name}={value}" for name, value in HEALTH.items()}
    assert wanted <= set(re.findall(r"RAY_\w+=\d+", sbatch(DEMAND)))
    ours = yaml.safe_load(autoscaler(DEMAND, user="me", hosts=["a", "b"]))
    for which in ("head", "worker"):
        assert any(wanted <= set(command.split()) for command in ours[f"{which}_start_ray_commands"])
    _, job, _ = yaml.safe_load_all(rayjob(DEMAND, "data"))
    cluster = job["spec"]["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        (container,) = group["template"]["spec"]["containers"]
        assert wanted <= {f"{one['name']}={one['value']}" for one in container["env"] if "value" in one}


def test_a_connection_lasts_until_a_node_that_is_cut_off_is_lost() -> None:
    """Else a node is back before that, and what its workers had to say meanwhile is not."""
    each = int(HEALTH["RAY_health_check_timeout_ms"]) + int(HEALTH["RAY_health_check_period_ms"])
    lost = each * int(HEALTH["RAY_health_check_failure_threshold"])
    assert lost <= 30_000
    assert 1.5 * lost <= int(HEALTH["RAY_grpc_keepalive_timeout_ms"])


def test_the_metrics_port_is_open_to_the_clusters_own_pods_alone() -> None:
    *_, policy = yaml.safe_load_all(rayjob(DEMAND, "data"))
    rules = policy["spec"]["ingress"]
    everywhere = [rule for rule in rules if "ports" not in rule]
    assert everywhere == [{"from": [{"podSelector": policy["spec"]["podSelector"]}]}]
    assert {port["port"] for rule in rules if "ports" in rule for port in rule["ports"]} == {8265}


def test_a_head_that_we_start_shows_its_dashboard_to_nobody_beyond_it() -> None:
    """KubeRay's is reached by its operator: that one asks for the token, and the policy lets in nobody else."""
    texts = [sbatch(DEMAND), autoscaler(DEMAND, user="me", hosts=["10.0.0.5"])]
    texts.append(autoscaler(DEMAND, user="me", region="eu-west-1", instance="g6.xlarge"))
    for text in texts:
        heads = [line for line in text.splitlines() if "--head" in line]
        assert len(heads) == 1
        assert ("--include-dashboard=false" in heads[0]) or ("--dashboard-host=127.0.0.1" in heads[0])
        assert "0.0.0.0" not in text


def test_the_batch_script_is_a_script() -> None:
    text = sbatch(DEMAND, "gpu-long")
    subprocess.run(["bash", "-n"], input=text.encode(), check=True)
    head = {line.removeprefix("#SBATCH --") for line in text.splitlines() if line.startswith("#SBATCH")}
    assert {"nodes=3", "cpus-per-task=8", "gpus-per-node=2", "mem=32G", "time=05:30:00", "partition=gpu-long"} <= head
    assert "@" not in text.replace("B:TERM@120", "").replace('"${resources[@]}"', "")
    assert "ray stop" not in text
    with pytest.raises(ClusterError, match="partition"):
        sbatch(DEMAND, "a b; rm")


@settings(max_examples=60, deadline=None)
@given(st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\x00"), min_size=1, max_size=30))
def test_no_folder_and_no_set_escapes_into_the_shell(text: str) -> None:
    """Whatever the words are, bash sees them as the words they are."""
    script = sbatch(replace(DEMAND, folder=f"/{text}", sets=(f"a={text}",)))
    words = script.partition("\n  status=0\n")[2].partition(" &\n  driver=$!")[0]
    found = subprocess.run(
        ["bash", "-c", f'address=H:1; stockpot() {{ printf "%s\\0" "$@"; }}; {words}'],
        capture_output=True,
        check=True,
    ).stdout
    assert found.decode().split("\0")[-2] == f"a={text}"
    cd = script.partition("\ncd ")[2].partition("\n# Secrets")[0].rstrip("\n")
    shown = subprocess.run(["bash", "-c", f'printf "%s" {cd}'], capture_output=True, check=True).stdout
    assert shown.decode() == f"/{text}"


def test_the_launchers_file_is_valid_by_rays_schema() -> None:
    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    own = yaml.safe_load(autoscaler(DEMAND, user="me", hosts=["10.0.0.1", "10.0.0.2"]))
    cloud = yaml.safe_load(autoscaler(DEMAND, user="ubuntu", region="eu-west-1", instance="g6.xlarge"))
    for body in (own, cloud):
        jsonschema.validate(body, schema)
        starts = body["head_start_ray_commands"] + body["worker_start_ray_commands"]
        assert all("RAY_AUTH_MODE=token" in start for start in starts)
        assert not any("ray stop" in start for start in starts)
    assert cloud["available_node_types"]["trials"]["resources"] == {"CPU": 8, "GPU": 2}
    assert own["provider"]["worker_ips"] == ["10.0.0.2"]


def test_what_ray_up_is_told_to_do_first_makes_a_token_once(tmp_path: Path) -> None:
    notes = autoscaler(replace(DEMAND, name="sweep"), user="me", hosts=["a", "b"]).splitlines()
    make = next(line.removeprefix("#   ") for line in notes if "install -d" in line)
    assert not any(f"ray up {DEMAND.file}" in line for line in notes), "that is the sweep's file"
    token = tmp_path / ".stockpot" / "ray-token"
    own = {**os.environ, "HOME": str(tmp_path), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    subprocess.run(["sh", "-ec", make], env=own, check=True)
    first = token.read_text()
    assert (len(first), stat.S_IMODE(token.stat().st_mode)) == (64, 0o600)
    subprocess.run(["sh", "-ec", make], env=own, check=True)
    assert token.read_text() == first, "other clusters use the one that is there"
    with pytest.raises(ClusterError, match="--hosts"):
        autoscaler(DEMAND, user="me")
    with pytest.raises(ClusterError, match="both --region and --instance"):
        autoscaler(DEMAND, user="me", region="eu-west-1")


FILE = """\
name: two
pipeline: {type: custom, import_path: "toy:Toy", total: 1, metrics: {loss: minimize}, kwargs: {x: 0}}
parameters: {kwargs.x: [0, 1, 2, 4]}
method: grid
metric: loss
resources: {cpus: 2, gpus: 0}
"""


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["kube"], "did you mean 'kuberay'"),
        (["kuberay"], "--volume"),
        (["kuberay", "--volume", "v"], "--image"),
        (["slurm", "--volume", "v"], "kuberay's manifest and means nothing to slurm"),
        (["slurm", "--standing"], "kuberay's manifest and means nothing to slurm"),
        (["slurm", "--cpus", "1"], "a trial takes 2 CPUs"),
        (["ray-up"], "--hosts"),
    ],
)
def test_mistakes_are_one_message(
    words: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "toy.py").write_text("class Toy: pass\n")
    (tmp_path / "sweep.yaml").write_text(FILE)
    assert main(["cluster", "manifest", words[0], str(tmp_path / "sweep.yaml"), *words[1:]]) == 2
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "nodes"), [([], 4), (["--cpus", "4"], 2), (["--cpus", "9"], 1), (["--nodes", "7"], 7)]
)
def test_there_are_as_many_machines_as_trials_run_at_once(
    words: list[str], nodes: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "toy.py").write_text("class Toy: pass\n")
    (tmp_path / "sweep.yaml").write_text(FILE)
    assert main(["cluster", "manifest", "slurm", str(tmp_path / "sweep.yaml"), *words]) == 0
    assert f"#SBATCH --nodes={nodes}\n" in capsys.readouterr().out
