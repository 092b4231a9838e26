"""A sweep as a Slurm batch script: it raises a Ray cluster on the nodes that it was given, and takes it down again.

One `srun` starts a task on every node. The first one raises the head and runs the driver; the others join and wait for its
end. The token, the address and the end are files in a private folder beside the sweep file, on the file system that all nodes
share. Every process is ended by its id; `ray stop` is never used, for it would end the Ray of other jobs on the node.
A job that is requeued, or submitted again, goes on from the ledger.

Source: Slurm's sbatch and srun manuals (22.05).
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from cluster.backend import ADDRESS
from cluster.base import HEALTH, ClusterError
from cluster.demand import Demand, bash_word, on_one_line

TOLD_SECONDS = 120
"""How long before its time is up the driver is told, so that running trials reach their next report."""


def sbatch(demand: Demand, partition: str | None = None, words: Sequence[str] = ()) -> str:
    """The batch script.

    Args:
        demand: what the sweep asks for.
        partition: Slurm's; its default where None.
        words: the command, with `ADDRESS` for the cluster's; empty runs the sweep, or goes on with it.

    Raises:
        ClusterError: if a name can't stand in the script's head.
    """
    if partition is not None and not re.fullmatch(r"[\w.,-]+", partition):
        raise ClusterError(f"--partition: {partition!r} is no name of a partition")
    asked = {
        "job-name": demand.label,
        "nodes": demand.nodes,
        "ntasks-per-node": 1,
        "cpus-per-task": demand.cpus,
        "gpus-per-node": demand.gpus or None,
        "mem": None if demand.memory_gb is None else f"{demand.memory_gb}G",
        "time": None if demand.hours is None else _clock(demand.hours),
        "partition": partition,
        "signal": f"B:TERM@{TOLD_SECONDS}",
        "requeue": "",
        "open-mode": "append",
        "output": log_name(demand, "%j"),
    }
    head = "\n".join(
        f"#SBATCH --{key}" + (f"={value}" if value != "" else "") for key, value in asked.items() if value is not None
    )
    values = {
        "HEAD": head,
        "NAME": on_one_line(demand.name),
        "SECRETS": _secrets(demand),
        "HEALTH": " ".join(f"{name}={value}" for name, value in HEALTH.items()),
        "FOLDER": bash_word(demand.folder),
        "LABEL": demand.label,
        "GPUS": str(demand.gpus),
        "COMMAND": " ".join('"$address"' if word is None else bash_word(word) for word in _words(demand, words)),
    }
    return re.sub("@([A-Z]+)@", lambda mark: values[mark[1]], _SCRIPT)


def log_name(demand: Demand, job: str) -> str:
    """Name of the file beside the sweep file that a job prints into."""
    return f"{demand.label}-{job}.log"


def _words(demand: Demand, words: Sequence[str]) -> list[str | None]:
    """The command; None where the address comes, which the script finds out."""
    return [None if word == ADDRESS else word for word in words or demand.command(demand.file, ADDRESS)]


def _clock(hours: float) -> str:
    minutes = math.ceil(hours * 60)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:00"


def _secrets(demand: Demand) -> str:
    if not demand.secrets:
        return ""
    checks = "\n".join(f': "${{{name}:?export {name} before sbatch}}"' for name in demand.secrets)
    return f"# Secrets come from the environment that sbatch was called in; they stand in no file.\n{checks}\n"


_SCRIPT = """\
#!/bin/bash
@HEAD@
# @NAME@: a Ray cluster of this job's own, a sweep on it, and its end. Goes on where an earlier job of it was cut off.
set -euo pipefail
umask 077
cd @FOLDER@
@SECRETS@
state="$PWD/.@LABEL@-slurm-$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}"
mkdir -p "$state"
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$state/token" RAY_USAGE_STATS_ENABLED=0
export @HEALTH@
python -c 'import secrets; print(secrets.token_hex(32), end="")' > "$state/token"

export state
cat > "$state/node.sh" <<'END-OF-NODE'
# One task of every node: the first raises the head and runs the driver, the others join it.
set -uo pipefail
ip="$(hostname -I | cut -d' ' -f1)"
temp="$(mktemp -d /tmp/sp-XXXXXX)"
resources=(--num-cpus="$SLURM_CPUS_PER_TASK" --num-gpus=@GPUS@ --temp-dir="$temp" --node-ip-address="$ip"
  --disable-usage-stats --block
  --min-worker-port=0 --max-worker-port=0 --dashboard-agent-listen-port=0) # other jobs on the node may have a Ray too
if [ "$SLURM_PROCID" = 0 ]; then
  port="$(python -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])')"
  address="$ip:$port"
  ray start --head --port="$port" --include-dashboard=false "${resources[@]}" > "$state/ray-0.log" 2>&1 &
  ray=$!
  for _ in $(seq 120); do
    (: < "/dev/tcp/$ip/$port") 2>/dev/null && break
    kill -0 "$ray" 2>/dev/null || { cat "$state/ray-0.log"; touch "$state/ended"; exit 1; }
    sleep 1
  done
  echo "$address" > "$state/.address" && mv "$state/.address" "$state/address"
  python -m cluster.wait "$SLURM_NNODES" "$address" || { touch "$state/ended"; kill "$ray"; exit 1; }
  status=0
  @COMMAND@ &
  driver=$!
  trap 'kill -INT "$driver" 2>/dev/null' TERM INT
  while kill -0 "$driver" 2>/dev/null; do wait "$driver" && status=0 || status=$?; done
  touch "$state/ended"
else
  until [ -e "$state/address" ] || [ -e "$state/ended" ]; do sleep 1; done
  [ -e "$state/ended" ] && { rm -rf "$temp"; exit 0; }
  ray start --address="$(cat "$state/address")" "${resources[@]}" > "$state/ray-$SLURM_PROCID.log" 2>&1 &
  ray=$!
  trap ':' TERM INT
  while [ ! -e "$state/ended" ] && kill -0 "$ray" 2>/dev/null; do sleep 1; done
  status=0
fi
# Ray's own end of a node can leave its agents behind, and not every Slurm ends what a job has left.
python -m cluster.processes "$ray" || kill "$ray" 2>/dev/null || true
wait "$ray" 2>/dev/null || true
rm -rf "$temp"
exit "$status"
END-OF-NODE
srun --kill-on-bad-exit=0 bash "$state/node.sh" &
tasks=$!
trap 'kill -TERM "$tasks" 2>/dev/null' TERM INT
status=0
while kill -0 "$tasks" 2>/dev/null; do wait "$tasks" && status=0 || status=$?; done
rm -f "$state/token"
[ "$status" = 0 ] && rm -rf "$state"
exit "$status"
"""
