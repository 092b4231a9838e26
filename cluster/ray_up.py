"""A sweep's machines as a file for Ray's own cluster launcher (`ray up`): machines of yours over SSH, or AWS instances.

The token is a file of yours that the launcher copies to every node, and each start command says that it counts; the dashboard
stays on the head's loopback. Secrets that the sweep names are a file of yours as well, read where a node starts; none stands in
the launcher's. On machines of your own nothing is ended by name: `ray stop` would end what others run there.

Source: Ray 2.60's schema of the file (`ray/autoscaler/ray-schema.json`).
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

import yaml

from cluster.base import HEALTH, ClusterError
from cluster.demand import Demand, bash_word, on_one_line

TOKEN = "~/.stockpot/ray-token"
PORT = 6379
INSTALL = "python -m pip install stockpot"
FILE = "machines.yaml"
"""What the lines at its top call the file; the sweep's own file may have the sweep's name."""
_MAKE = "python -c 'import secrets; print(secrets.token_hex(32), end=\"\")'"
_HEAD_INSTANCE = "m6i.large"


def autoscaler(
    demand: Demand,
    *,
    user: str,
    hosts: Sequence[str] = (),
    region: str | None = None,
    instance: str | None = None,
    install: str = INSTALL,
) -> str:
    """The file for `ray up`.

    Args:
        demand: what the sweep asks for.
        user: who logs in to the machines.
        hosts: addresses of machines of your own, the head first.
        region: AWS region, where there are no machines of your own.
        instance: AWS instance type of the machines that trials run on.
        install: shell command that puts Stockpot on a node.

    Raises:
        ClusterError: if neither hosts nor region and instance are given, or both are.
    """
    if bool(hosts) == bool(region or instance):
        raise ClusterError(
            "ray-up: give --hosts HEAD,WORKER,... for machines of your own, or --region and --instance for AWS"
        )
    if not hosts and not (region and instance):
        raise ClusterError("ray-up: AWS needs both --region and --instance")
    own = bool(hosts)
    private = [TOKEN, *([_environment(demand)] if demand.secrets else [])]
    body: dict[str, Any] = {
        "cluster_name": demand.label,
        "max_workers": max(0, len(hosts) - 1) if own else demand.nodes,
        "provider": (
            {"type": "local", "head_ip": hosts[0], "worker_ips": list(hosts[1:])}
            if own
            else {"type": "aws", "region": region, "cache_stopped_nodes": False}
        ),
        "auth": {"ssh_user": user},
        "file_mounts": {file: file for file in private},
        "setup_commands": [*(f"chmod 600 {file}" for file in private), install],
        "head_start_ray_commands": [_start(demand, head=True, own=own)],
        "worker_start_ray_commands": [_start(demand, head=False, own=own)],
    }
    if not own:
        body["available_node_types"] = _instances(demand, str(instance))
        body["head_node_type"] = "head"
    command = " ".join(map(bash_word, demand.command(demand.file, "auto")))
    notes = [
        f"# {on_one_line(demand.name)}: before the first `ray up`, a token that only you can read, where you have none yet:",
        f"#   install -d -m 700 ~/.stockpot; [ -e {TOKEN} ] || (umask 077; {_MAKE} > {TOKEN})",
        *_make_environment(demand),
        f"# Then, with this file as {FILE}: ray up {FILE}; ray attach {FILE}, and on the head, beside {on_one_line(demand.file)}:",
        f"#   {_sourced(demand)}RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH={TOKEN} {command}",
        "# Every node must see the sweep's folder, its data and models at the same paths (docs/guides/deploying.md).",
    ]
    return "\n".join(notes) + "\n" + yaml.safe_dump(body, sort_keys=False, width=160)


def _environment(demand: Demand) -> str:
    """The file with the secrets, here and on every node."""
    return f"~/.stockpot/{demand.label}.env"


def _make_environment(demand: Demand) -> list[str]:
    """Lines that say how the file with the secrets is made from a shell that has them; none where the sweep names none."""
    if not demand.secrets:
        return []
    code = 'import os, shlex, sys; [print(f"export {name}={shlex.quote(os.environ[name])}") for name in sys.argv[1:]]'
    return [
        f"# and its secrets, from the environment of this shell ({', '.join(demand.secrets)}); every node reads them where Ray starts:",
        f"#   (umask 077; python -c {shlex.quote(code)} {' '.join(demand.secrets)} > {_environment(demand)})",
    ]


def _sourced(demand: Demand) -> str:
    """What a command begins with that needs the secrets."""
    return f". {_environment(demand)} && " if demand.secrets else ""


def _instances(demand: Demand, instance: str) -> dict[str, Any]:
    has = {"CPU": demand.cpus, **({"GPU": demand.gpus} if demand.gpus else {})}
    return {
        "head": {"resources": {"CPU": 0}, "node_config": {"InstanceType": _HEAD_INSTANCE}},
        "trials": {
            "resources": has,
            "node_config": {"InstanceType": instance},
            "min_workers": demand.nodes,
            "max_workers": demand.nodes,
        },
    }


def _start(demand: Demand, *, head: bool, own: bool) -> str:
    """One start command; on machines of your own the head holds trials too."""
    words = [f"{name}={value}" for name, value in HEALTH.items()]
    words[0] = _sourced(demand) + words[0]
    words.append(f"RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH={TOKEN} ray start --disable-usage-stats")
    if head:
        words.append(
            f"--head --port={PORT} --dashboard-host=127.0.0.1 --autoscaling-config=~/ray_bootstrap_config.yaml"
        )
    else:
        words.append(f"--address=$RAY_HEAD_IP:{PORT}")
    if own:
        words.append(f"--num-cpus={demand.cpus} --num-gpus={demand.gpus}")
    return " ".join(words)
