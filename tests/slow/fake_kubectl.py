"""A small Kubernetes with KubeRay, of one machine, as one program `kubectl`.

`install(folder)` writes the program; with the folder on PATH, `kubectl apply -f -` of a RayJob raises its Ray cluster (a head and its
workers, with a token) and runs the entrypoint as Ray Jobs does, by a shell. Where that fails, KubeRay's `backoffLimit` raises another
cluster; `suspend` ends it all. Jobs are folders under `FAKE_KUBE`; the volume is the folder `FAKE_KUBE/volume`, whose place in the pods
(`/stockpot`) is replaced in everything that goes in.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

MOUNT = "/stockpot"
TOGETHER = (
    "--min-worker-port=0",
    "--max-worker-port=0",
    "--dashboard-agent-listen-port=0",
    "--object-store-memory=100000000",
)
"""A pod has its own ports and memory; here all nodes, and whatever else runs, share them."""
JOINED = "import ray; ray.init(address='auto', log_to_driver=False); print(len(ray.nodes()))"


def install(folder: Path) -> None:
    """Write the program."""
    folder.mkdir(parents=True, exist_ok=True)
    program = folder / "kubectl"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} {Path(__file__).resolve()} "$@"\n')
    program.chmod(0o755)


def home() -> Path:
    """Where everything is kept."""
    return Path(os.environ["FAKE_KUBE"])


def inside(text: str) -> str:
    """A text of the pods as this machine sees its paths."""
    return text.replace(MOUNT, str(home() / "volume"))


def status(job: Path, **changes: str) -> dict[str, Any]:
    """The status of a RayJob, with changes."""
    file = job / "status.json"
    told: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    if changes:
        told |= changes
        (job / "status.tmp").write_text(json.dumps(told))
        (job / "status.tmp").replace(file)
    return told


def apply(words: list[str]) -> int:
    """`kubectl apply -f -`."""
    for part in yaml.safe_load_all(sys.stdin.read()):
        if part["kind"] == "ConfigMap":
            for name, text in part["data"].items():
                (home() / "volume" / name).write_text(inside(text))
        if part["kind"] == "RayJob":
            job = home() / "jobs" / part["metadata"]["name"]
            job.mkdir(parents=True)
            (job / "spec.json").write_text(json.dumps(part["spec"]))
            status(job, jobDeploymentStatus="Initializing", jobStatus="")
            subprocess.Popen(
                [sys.executable, __file__, "_run", job.name], start_new_session=True, stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
        print(f"{part['kind'].lower()} created")
    return 0


def spec(job: Path) -> dict[str, Any]:
    """What was asked for."""
    found: dict[str, Any] = json.loads((job / "spec.json").read_text())
    return found


def _run(words: list[str]) -> int:
    """The operator, for one job."""
    job = home() / "jobs" / words[0]
    for attempt in range(1 + spec(job)["backoffLimit"]):
        (job / "tries").write_text(str(attempt + 1))
        ended = _cluster(job, f"{job.name}-{attempt}")
        if ended is None:
            status(job, jobDeploymentStatus="Suspended", jobStatus="", rayClusterName="")
            return 0
        if ended == 0:
            status(job, jobDeploymentStatus="Complete", jobStatus="SUCCEEDED", rayClusterName="")
            return 0
        status(job, jobDeploymentStatus="Retrying", jobStatus="FAILED", rayClusterName="")
        if spec(job).get("suspend"):
            status(job, jobDeploymentStatus="Suspended", jobStatus="")
            return 0
    status(job, jobDeploymentStatus="Failed", jobStatus="FAILED", reason="AppFailed")
    return 0


def _cluster(job: Path, name: str) -> int | None:
    """One cluster and the command on it: the command's exit status, None where it was suspended."""
    temp = Path(tempfile.mkdtemp(prefix="fk-", dir="/tmp"))
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    host = subprocess.run(["hostname", "-I"], capture_output=True, text=True, check=True).stdout.split()[0]
    own = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(16), "RAY_ADDRESS": f"{host}:{port}"}
    (job / "environment.json").write_text(json.dumps(own))
    environment, asked = {**os.environ, **own}, spec(job)["rayClusterSpec"]
    cpus = [asked["headGroupSpec"]["rayStartParams"]["num-cpus"]]
    for group in asked["workerGroupSpecs"]:
        cpus += [group["rayStartParams"]["num-cpus"]] * group["replicas"]
    started = []
    log = (job / "log").open("ab")
    try:
        for number, count in enumerate(cpus):
            role = (
                ["--head", f"--port={port}", "--include-dashboard=false"]
                if not number
                else [f"--address={host}:{port}"]
            )
            words = ["ray", "start", *role, f"--num-cpus={count}", f"--temp-dir={temp}", f"--node-ip-address={host}"]
            words += ["--block", *TOGETHER]
            with (job / f"node-{number}.log").open("ab") as out:
                started.append(subprocess.Popen(words, env=environment, stdout=out, stderr=out))
            # One after the other: two that start at once in one temporary folder take each other's places.
            _await(
                (lambda: _listens(host, port))
                if not number
                else (lambda joined=number + 1: _nodes(environment) == joined)
            )
        status(job, jobDeploymentStatus="Running", jobStatus="RUNNING", rayClusterName=name)
        entrypoint = inside(spec(job)["entrypoint"])
        driver = subprocess.Popen(entrypoint, shell=True, cwd=temp, env=environment, stdout=log, stderr=log, start_new_session=True)  # fmt: skip
        while driver.poll() is None:
            if spec(job).get("suspend"):
                os.killpg(driver.pid, signal.SIGKILL)
                driver.wait()
                return None
            time.sleep(0.2)
        return driver.returncode
    finally:
        subprocess.run([sys.executable, "-m", "cluster.processes", *(str(node.pid) for node in started)], check=False)
        for node in started:
            node.wait()
        log.close()
        shutil.rmtree(temp, ignore_errors=True)


def _await(true: Any) -> None:
    until = time.monotonic() + 120
    while not true():
        if time.monotonic() > until:
            sys.exit("the cluster did not come up")
        time.sleep(0.3)


def _listens(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), 1).close()
    except OSError:
        return False
    return True


def _nodes(environment: dict[str, str]) -> int:
    asked = subprocess.run([sys.executable, "-c", JOINED], env=environment, capture_output=True, text=True, check=False)
    return int(asked.stdout.strip() or 0) if not asked.returncode else 0


def get(words: list[str]) -> int:
    """`kubectl get rayjob NAME -o json`, `get pods -l ray.io/cluster=NAME,... -o name`, `get secret NAME ...`."""
    if words[0] == "secret":
        return 0
    if words[0] == "pods":
        cluster = words[2].partition(",")[0].partition("=")[2]
        for job in (home() / "jobs").iterdir():
            if status(job).get("rayClusterName") == cluster:
                print(f"pod/{cluster}-head")
        return 0
    job = home() / "jobs" / words[1]
    if not job.is_dir():
        print(f'Error from server (NotFound): rayjobs.ray.io "{words[1]}" not found', file=sys.stderr)
        return 1
    print(json.dumps({"kind": "RayJob", "status": status(job)}))
    return 0


def logs(words: list[str]) -> int:
    """`kubectl logs job/NAME --tail=-1`."""
    sys.stdout.write((home() / "jobs" / words[0].removeprefix("job/") / "log").read_text())
    return 0


def patch(words: list[str]) -> int:
    """`kubectl patch rayjob NAME --type=merge -p JSON`."""
    job = home() / "jobs" / words[1]
    (job / "spec.tmp").write_text(json.dumps(spec(job) | json.loads(words[-1])["spec"]))
    (job / "spec.tmp").replace(job / "spec.json")
    return 0


def exec_(words: list[str]) -> int:
    """`kubectl exec pod/NAME -c ray-head -- WORDS`."""
    name = words[0].removeprefix("pod/").removesuffix("-head")
    job = next(job for job in (home() / "jobs").iterdir() if status(job).get("rayClusterName") == name)
    command = [inside(word) for word in words[words.index("--") + 1 :]]
    environment = {**os.environ, **json.loads((job / "environment.json").read_text())}
    return subprocess.run(command, env=environment, cwd="/", check=False).returncode


if __name__ == "__main__":
    given = sys.argv[1:]
    if given[0] == "--namespace":
        given = given[2:]
    verb = {"exec": "exec_"}.get(given[0], given[0])
    sys.exit(globals()[verb](given[1:]))
