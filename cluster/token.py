"""The token that lets a process into a Ray cluster: made here, in a file that only its owner can read.

Ray's own goes into a file that everybody on the machine can read, and a head that is started without one runs anybody's code.
"""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Mapping
from pathlib import Path

from cluster.base import ClusterError

TOKEN = Path("~/.stockpot/ray-token")
"""Where the token of this user's clusters lies."""
VARIABLES = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")


def make_token(path: Path = TOKEN) -> Path:
    """The token's file, made where there is none.

    Raises:
        ClusterError: if others can read or change the file that is there.
    """
    file = path.expanduser()
    if not file.exists():
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_private(file, secrets.token_hex(32))
    refuse_shared(file)
    return file


def refuse_shared(file: Path) -> None:
    """Check that a token is its owner's alone.

    Raises:
        ClusterError: if it is not.
    """
    mode = file.stat()
    if mode.st_uid != os.getuid() or stat.S_IMODE(mode.st_mode) & 0o077:
        raise ClusterError(
            f"{file}: others can read the cluster's token: chmod 600 {file}, and make a new one if they did"
        )


def write_private(path: Path, text: str) -> None:
    """A new file that only this user can read."""
    handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    with os.fdopen(handle, "w") as file:
        file.write(text)


def token_settings(environment: Mapping[str, str], path: Path = TOKEN) -> dict[str, str]:
    """Environment variables that make Ray use a token: those that are set already, else this user's file where it is.

    Raises:
        ClusterError: if others can read that file.
    """
    if any(environment.get(name) for name in VARIABLES):
        return {"RAY_AUTH_MODE": "token"}
    file = path.expanduser()
    if not file.is_file():
        return {}
    refuse_shared(file)
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(file)}


def open_door(address: str) -> str:
    """What is said of a cluster that asks for no token."""
    return (
        f"{address} lets everybody in: whoever reaches it runs programs there. Start the cluster with a token "
        "(stockpot cluster up does, docs/guides/deploying.md), or say --insecure"
    )


def no_token(address: str) -> str:
    """What is said where a cluster asks for a token and there is none."""
    return (
        f"{address} asks for a token, and there is none here: set RAY_AUTH_TOKEN_PATH, or copy the cluster's to "
        "~/.stockpot/ray-token"
    )


def wrong_token(address: str) -> str:
    """What is said where a cluster does not take the token."""
    return (
        f"{address} does not take the token that is here; copy the cluster's to ~/.stockpot/ray-token, or set "
        "RAY_AUTH_TOKEN_PATH to it"
    )


def read_token(environment: Mapping[str, str], path: Path = TOKEN) -> str | None:
    """The token itself, for requests of our own; None where there is none."""
    if environment.get("RAY_AUTH_TOKEN"):
        return environment["RAY_AUTH_TOKEN"]
    named = environment.get("RAY_AUTH_TOKEN_PATH")
    file = Path(named).expanduser() if named else path.expanduser()
    return file.read_text(encoding="utf-8").strip() if file.is_file() else None


def reread_environment() -> None:
    """Ray's core read the authentication variables when it was imported; have it forget them."""
    from ray._private.authentication.authentication_token_setup import AuthenticationTokenLoader, Config

    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()
