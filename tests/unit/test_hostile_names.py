"""Manifests and scripts for sweeps with hostile names: they stay what they are, and bash and Kubernetes run nothing of a name."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.demand import Demand, bash_word, on_one_line
from cluster.kuberay import raycluster, rayjob
from cluster.ray_up import autoscaler
from cluster.slurm import sbatch
from sweeps.cli import main

DEMAND = Demand(
    name="orders", nodes=2, cpus=4, gpus=0, file="sweep.yaml", text="name: orders\n", folder="/data", image="r/s:1"
)
NAMES = [
    "a b.yaml",
    "x\ny.yaml",
    "$(touch pwned).yaml",
    "`touch pwned`.yaml",
    "-rf.yaml",
    "'; touch pwned; '.yaml",
    '"; touch pwned; ".yaml',
    "x\nEND-OF-NODE\ntouch pwned\n.yaml",
    "x\n#SBATCH --output=pwned\n.yaml",
    "x\nkind: Pod\n.yaml",
    "x\ry.yaml",
    "x\u2028kind: Pod.yaml",
    "x\x85kind: Pod.yaml",
    "x\x07\x1b[2J.yaml",
    "..yaml",
    "...",
    "résumé ☃.yaml",
    "a:b#c\\d.yaml",
    "$(HOME)$$.yaml",
    os.fsdecode(b"\xff\xfe.yaml"),
]


def hostile(name: str) -> Demand:
    """A sweep whose file, folder and overrides all have the name."""
    return replace(DEMAND, file=name, folder=f"/data/{name}", sets=(f"a={name}",), name=name, secrets=("HF_TOKEN",))


def expected(name: str) -> list[str]:
    """What the command's words are, for a shell."""
    file = f"./{name}" if name.startswith("-") else name
    return ["submit", file, "--or-resume", "--address", "H:1", "--set", f"a={name}"]


def run_by_bash(folder: Path, script: str) -> list[str]:
    """What the stockpot of a script is called with; the script runs in a folder where nothing else may appear."""
    done = subprocess.run(
        ["bash", "-c", f'address=H:1\nstockpot() {{ printf "%s\\0" "$@"; }}\n{script}'],
        cwd=folder,
        capture_output=True,
        check=True,
    )
    assert list(folder.iterdir()) == [], "a name was run"
    return [os.fsdecode(word) for word in done.stdout.split(b"\0")[:-1]]


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_script_is_the_same_script_whatever_the_names(tmp_path: Path, name: str) -> None:
    """It is read as bash reads it, and the part that each node gets is taken from the here-document as bash takes it."""
    script, plain = sbatch(hostile(name)), sbatch(replace(hostile("n.yaml"), name="n"))
    script.encode()
    assert len(script.splitlines()) == len(plain.splitlines()) == script.count("\n")
    directives = [line for line in script.splitlines() if line.startswith("#SBATCH")]
    assert len(directives) == plain.count("#SBATCH")
    assert all(re.fullmatch(r"#SBATCH --[a-z-]+(=[A-Za-z0-9:@%.-]+)?", line) for line in directives)
    subprocess.run(["bash", "-n"], input=script.encode(), check=True)
    here = script.partition("<<'END-OF-NODE'\n")[2].partition("\nEND-OF-NODE\n")[0]
    command = here.partition("\n  status=0\n")[2].partition(" &\n  driver=$!")[0]
    assert run_by_bash(tmp_path, command) == expected(name)
    cd = next(line for line in script.splitlines() if line.startswith("cd "))
    shown = subprocess.run(["bash", "-c", f'printf "%s" {cd[3:]}'], cwd=tmp_path, capture_output=True, check=True)
    assert (os.fsdecode(shown.stdout), list(tmp_path.iterdir())) == (f"/data/{name}", [])


@pytest.mark.parametrize("name", NAMES)
def test_what_the_launcher_says_to_run_runs_that_alone(tmp_path: Path, name: str) -> None:
    text = autoscaler(hostile(name), user="me", hosts=["10.0.0.5"])
    text.encode()
    plain = autoscaler(hostile("n.yaml"), user="me", hosts=["10.0.0.5"])
    told, usual = yaml.safe_load(text), yaml.safe_load(plain)
    assert told.keys() == usual.keys()
    assert told["cluster_name"] == hostile(name).label
    notes = [line for line in text.splitlines() if line.startswith("#")]
    assert len(notes) == len([line for line in plain.splitlines() if line.startswith("#")])
    line = next(line for line in notes if "stockpot submit" in line)
    words = run_by_bash(tmp_path, line[line.index("stockpot submit") :].replace("--address auto", "--address H:1"))
    assert words == expected(name)


@pytest.mark.parametrize("name", NAMES)
def test_kuberay_gets_objects_that_kubernetes_takes(tmp_path: Path, name: str) -> None:
    text = rayjob(hostile(name), name)
    text.encode("utf-8", "surrogateescape")
    config, job, policy = yaml.safe_load_all(text)
    assert [one["kind"] for one in (config, job, policy)] == ["ConfigMap", "RayJob", "NetworkPolicy"]
    ((key, kept),) = config["data"].items()
    assert re.fullmatch(r"[-._a-zA-Z0-9]{1,253}", key)
    assert not key.startswith(("..", "-"))
    assert kept == DEMAND.text
    pod = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    mounts = {mount["mountPath"]: mount.get("subPath") for mount in pod["containers"][0]["volumeMounts"]}
    assert mounts[f"/stockpot/{key}"] == key
    ran = run_by_kuberay(tmp_path, job["spec"]["entrypoint"])
    assert ran[:3] == ["stockpot", "submit", f"/stockpot/{key}"]
    assert ran[-1] == f"a={name}"
    cluster, _ = yaml.safe_load_all(raycluster(hostile(name), name))
    assert cluster["kind"] == "RayCluster"


def run_by_kuberay(folder: Path, entrypoint: str) -> list[str]:
    """The words that reach a job: Kubernetes expands the container's arguments, bash reads them, Ray quotes for `sh` again.

    KubeRay 1.6 (`BuildJobSubmitCommand`) has `bash -ce` run `... ray job submit ... -- ENTRYPOINT ;`, and Ray 2.60 joins the words
    that it gets there with `shlex.join`.
    """
    script = expanded(f"if true ; then ray job submit -- {entrypoint.strip()} ; fi ;", {"HOME": "/root"})
    done = subprocess.run(
        ["bash", "-ce", "--", f'ray() {{ shift 3; printf "%s\\0" "$@"; }}; {script}'],
        cwd=folder,
        capture_output=True,
        check=True,
    )
    words = done.stdout.split(b"\0")[:-1]
    joined = shlex.join(map(os.fsdecode, words))
    again = subprocess.run(
        ["sh", "-c", f'stockpot() {{ printf "stockpot\\0"; printf "%s\\0" "$@"; }}; {joined}'],
        cwd=folder,
        capture_output=True,
        check=True,
    )
    assert list(folder.iterdir()) == [], "a name was run"
    return [os.fsdecode(word) for word in again.stdout.split(b"\0")[:-1]]


def expanded(text: str, environment: dict[str, str]) -> str:
    """What Kubernetes makes of a container's argument: `$(NAME)` is the variable where there is one, `$$` is one `$`."""

    def expand(found: re.Match[str]) -> str:
        return "$" if found[0] == "$$" else environment.get(found[1], found[0])

    return re.sub(r"\$\$|\$\(([A-Za-z_][A-Za-z0-9_]*)\)", expand, text)


@settings(max_examples=150, deadline=None)
@given(st.text(st.characters(blacklist_characters="\x00/", blacklist_categories=["Cs"]), min_size=1, max_size=30))
def test_any_word_is_one_word_on_one_line(text: str) -> None:
    word = bash_word(text)
    assert len(word.splitlines()) == 1
    shown = subprocess.run(["bash", "-c", f'printf "%s" {word}'], capture_output=True, check=True)
    assert shown.stdout == text.encode()
    assert len(on_one_line(text).splitlines()) <= 1
    assert yaml.safe_load(f"# {on_one_line(text)}\na: 1\n") == {"a": 1}


@settings(max_examples=150, deadline=None)
@given(st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\x00"), max_size=60))
def test_any_text_of_a_sweep_file_is_the_same_in_the_config_map(text: str) -> None:
    demand: Any = replace(DEMAND, text=f"#{text}")
    config, *_ = yaml.safe_load_all(rayjob(demand, "data"))
    assert config["data"] == {"sweep.yaml": f"#{text}"}


@pytest.mark.parametrize("backend", ["slurm", "kuberay", "ray-up"])
@pytest.mark.parametrize("name", NAMES)
def test_the_command_writes_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], backend: str, name: str
) -> None:
    """From a file of that name on the disk."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text("class Own: ...\n")
    (tmp_path / name).write_text(
        'name: own\npipeline: {type: custom, import_path: "mine:Own", total: 2, metrics: {loss: minimize}}\n'
        "parameters: {kwargs.x: [1, 2]}\nmethod: grid\nmetric: loss\nresources: {cpus: 1, gpus: 0}\n"
    )
    more = {"kuberay": ["--image", "r/s:1", "--volume", "data"], "ray-up": ["--hosts", "10.0.0.5"]}.get(backend, [])
    assert main(["cluster", "manifest", backend, f"./{name}", *more, "-o", "out"]) == 0, capsys.readouterr().err
    text = (tmp_path / "out").read_text(encoding="utf-8")
    if backend == "slurm":
        subprocess.run(["bash", "-n"], input=text.encode(), check=True)
    else:
        assert list(yaml.safe_load_all(text))
