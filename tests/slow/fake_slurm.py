"""A small Slurm of one machine: `sbatch`, `srun`, `squeue`, `sacct` and `scancel` as programs, for generated scripts.

`install(folder)` writes the five programs; with the folder on PATH, `sbatch script.sh` runs the script's body in the background
with the variables that Slurm sets (it waits while there is a file `full` among the jobs), `srun` runs its command once for every node (all of them here), and `scancel` signals the
batch shell, as `--signal=B:` asks, and ends the job if it is still there later. Jobs are folders under `FAKE_SLURM`.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

PROGRAMS = ("sbatch", "srun", "squeue", "sacct", "scancel")
CANCEL_SECONDS = 60.0


def install(folder: Path) -> None:
    """Write the programs; each calls this module with its own name."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in PROGRAMS:
        program = folder / name
        program.write_text(f'#!/bin/sh\nexec {sys.executable} {Path(__file__).resolve()} {name} "$@"\n')
        program.chmod(0o755)


def jobs() -> Path:
    """Where jobs are kept."""
    return Path(os.environ["FAKE_SLURM"])


def sbatch(words: list[str]) -> int:
    """`sbatch [--parsable] [--export=ALL] [SCRIPT]`, which is else read from standard input."""
    script = sys.stdin.read() if words[-1].startswith("--") else Path(words[-1]).read_text()
    asked = dict(line[10:].partition("=")[::2] for line in script.splitlines() if line.startswith("#SBATCH --"))
    number = 1 + max((int(path.name) for path in jobs().glob("[0-9]*")), default=100)
    home = jobs() / str(number)
    home.mkdir(parents=True)
    (home / "asked.json").write_text(json.dumps(asked))
    (home / "script.sh").write_text(script)
    subprocess.Popen(
        [sys.executable, __file__, "_run", str(number)], start_new_session=True, stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    print(number if "--parsable" in words else f"Submitted batch job {number}")
    return 0


def _run(words: list[str]) -> int:
    """The job itself."""
    home = jobs() / words[0]
    asked = json.loads((home / "asked.json").read_text())
    while (jobs() / "full").exists():
        if (home / "cancelled").exists():
            (home / "ended").write_text("0")
            return 0
        time.sleep(0.1)
    variables = {
        "SLURM_JOB_ID": words[0],
        "SLURM_NNODES": asked["nodes"],
        "SLURM_CPUS_PER_TASK": asked["cpus-per-task"],
        "SLURM_JOB_NODELIST": f"node[1-{asked['nodes']}]",
    }
    log = Path(asked["output"].replace("%j", words[0]))
    with log.open("ab") as out:
        shell = subprocess.Popen(
            ["bash", str(home / "script.sh")], env={**os.environ, **variables}, stdout=out, stderr=out
        )
    (home / "pid").write_text(str(shell.pid))
    status = shell.wait()
    (home / "ended").write_text(str(status))
    return 0


def srun(words: list[str]) -> int:
    """`srun [--option=value ...] COMMAND ...`: one task for every node; signals go to all of them."""
    command = words[next(i for i, word in enumerate(words) if not word.startswith("--")) :]
    tasks = [
        subprocess.Popen(command, env={**os.environ, "SLURM_PROCID": str(rank)})
        for rank in range(int(os.environ["SLURM_NNODES"]))
    ]

    def forward(number: int, frame: object) -> None:
        for task in tasks:
            task.send_signal(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, forward)
    return max(abs(task.wait()) for task in tasks)


def state(home: Path) -> str:
    """A job's state as `sacct` says it."""
    if not (home / "ended").is_file():
        return "RUNNING" if (home / "pid").is_file() else "PENDING"
    if (home / "cancelled").is_file():
        return "CANCELLED"
    return "COMPLETED" if (home / "ended").read_text() == "0" else "FAILED"


def squeue(words: list[str]) -> int:
    """`squeue --noheader --format=%T|%r --jobs=N`, or with another format of these two: nothing for a job that has ended."""
    number = next(re.findall(r"--jobs=(\d+)", word)[0] for word in words if word.startswith("--jobs="))
    told, form = state(jobs() / number), next(word for word in words if word.startswith("--format=")).partition("=")[2]
    if told in ("RUNNING", "PENDING"):
        print(form.replace("%T", told).replace("%r", "Priority" if told == "PENDING" else "None"))
    return 0


def sacct(words: list[str]) -> int:
    """`sacct --noheader --parsable2 --format=State,ExitCode --jobs=N`."""
    number = next(re.findall(r"--jobs=(\d+)", word)[0] for word in words if word.startswith("--jobs="))
    home = jobs() / number
    status = (home / "ended").read_text() if (home / "ended").is_file() else "0"
    print(f"{state(home)}|{status}:0")
    return 0


def scancel(words: list[str]) -> int:
    """`scancel N`: TERM to the batch shell, KILL to the job's session a minute later."""
    home = jobs() / words[-1]
    (home / "cancelled").touch()
    if not (home / "pid").exists():
        return 0
    pid = int((home / "pid").read_text())
    os.kill(pid, signal.SIGTERM)
    if os.fork() == 0:
        until = time.monotonic() + CANCEL_SECONDS
        while time.monotonic() < until and not (home / "ended").is_file():
            time.sleep(0.2)
        if not (home / "ended").is_file():
            os.killpg(os.getpgid(pid), signal.SIGKILL)
        os._exit(0)
    return 0


if __name__ == "__main__":
    sys.exit(globals()[sys.argv[1]](sys.argv[2:]))
