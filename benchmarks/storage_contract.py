"""Whether a bucket does what sweeps need of it: run against any `storage:` URL, with the keys of the environment.

    python benchmarks/storage_contract.py s3://bucket/prefix
    python benchmarks/storage_contract.py gs://bucket/prefix --megabytes 200
    python benchmarks/storage_contract.py az://container/prefix

It works below `<URL>/contract-<random>`, removes what it wrote, and prints a line for each thing that held. Status 1 where one did
not. The wrong keys and the address where nobody answers are put into the environment of a second process.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from sweeps.driving import driving
from sweeps.events import Event
from sweeps.fetching import refresh
from sweeps.ledger import Ledger
from sweeps.paths import SweepPaths
from sweeps.schemes import SCHEMES
from sweeps.storage import Storage, StorageError, open_storage
from sweeps.storage_lease import StorageLease, look

ODD = "trials/a b/100%/x#1?=ä+&.json"
WRITERS = 8
NOWHERE = "http://127.0.0.1:1"
KEY = "d3Jvbmc="
"""A key that is none of anybody's, in the form of one."""
AZURE = "DefaultEndpointsProtocol=http;AccountName={name};AccountKey={key};BlobEndpoint={where};"


def must(held: bool, told: object = "") -> None:
    """Refuse what does not hold."""
    if not held:
        raise AssertionError(f"does not hold: {told}")


def kind_of(act: Callable[[], object]) -> str:
    """How a request ended: the kind of its error, or `answered`."""
    try:
        act()
    except StorageError as error:
        return error.kind
    return "answered"


class Contract:
    """The checks, each a method; what it returns is printed.

    Args:
        url: of the bucket and a prefix.
        megabytes: of the large file.
    """

    def __init__(self, url: str, megabytes: int, scratch: Path) -> None:
        self.url = f"{url.rstrip('/')}/contract-{uuid.uuid4().hex[:8]}"
        self.megabytes = megabytes
        self.scratch = scratch
        self.storage = open_storage(f"{self.url}/one")

    def other(self, name: str = "one") -> Storage:
        """As another machine sees it: a client of its own."""
        return open_storage(f"{self.url}/{name}")

    def writes_and_reads(self) -> str:
        """A file is what was written last, also an empty one and one with an odd name."""
        self.storage.prove()
        for name, text in (("a.txt", b"first"), ("a.txt", b"second"), ("empty", b""), (ODD, b"odd")):
            self.storage.put(name, text)
            must(self.other().get(name) == text, name)
        must(self.storage.get("nothing") is None, "a missing file")
        return "also empty, over what was there, and under an odd name"

    def lists_what_another_wrote(self) -> str:
        """A list shows what another client has just written or removed."""
        must(self.storage.files("late") == {}, "an empty folder")
        self.other().put("late/x", b"12")
        must(self.storage.files("late") == {"late/x": 2}, self.storage.files("late"))
        must(self.storage.files("late/x") == {"late/x": 2}, "the one file that is meant")
        self.other("one-more").put("x", b"")
        must(ODD in self.storage.files() and "x" not in self.storage.files(), self.storage.files())
        found = open_storage(self.url).folders()
        must(found == ["one", "one-more"], found)
        self.other().delete(["late/x", "late/x"])
        must(self.storage.files("late") == {}, "a folder that was emptied")
        return "no stale lists, no neighbours"

    def lets_one_writer_through(self) -> str:
        """Of several who write where there is none at the same time, one is let through, and its words stay."""
        clients = [self.other() for _ in range(WRITERS)]
        for turn in range(5):
            name = f"race/{turn}"
            with ThreadPoolExecutor(WRITERS) as pool:
                won = list(pool.map(lambda at, name=name: clients[at].put_new(name, str(at).encode()), range(WRITERS)))
            must(won.count(True) == 1, f"{won.count(True)} of {WRITERS} were let through")
            must(self.storage.get(name) == str(won.index(True)).encode(), "what the one wrote")
        return f"one of {WRITERS}, 5 times"

    def leases_to_one_driver(self) -> str:
        """Of two machines that take the lease at once one gets it; the other is told who has it, and follows once it is given back."""
        taken: list[StorageLease] = []

        def take(home: str) -> str:
            paths = self._paths(home, "leased")
            paths.root.mkdir(parents=True)
            storage = self.other("leased")
            return kind_of(lambda: taken.append(StorageLease.take(storage, paths, look(storage), lambda text: None)))

        with ThreadPoolExecutor(2) as pool:
            ends = sorted(pool.map(take, ("one", "two")))
        must(ends == ["answered", "taken"], ends)
        must(take("three") == "taken", "a third one, while the first is alive")
        taken[0].close()
        must(take("four") == "answered" and taken[1].number == 2, "one that follows")
        taken[1].close()
        return "fencing numbers 1 and 2"

    def carries_a_large_file(self) -> str:
        """A file of several pieces comes back the same, and its progress is told."""
        there, back, told = self.scratch / "there", self.scratch / "back", []
        with there.open("wb") as file:
            for _ in range(self.megabytes):
                file.write(os.urandom(2**20))
        began = time.perf_counter()
        self.storage.send(there, "large.safetensors", lambda: told.append(1))
        sent = time.perf_counter() - began
        self.other().fetch("large.safetensors", back)
        must(_digest(there) == _digest(back), "its bytes")
        must(self.storage.files("large.safetensors") == {"large.safetensors": there.stat().st_size}, "its size")
        must(kind_of(lambda: self.storage.fetch("nothing", back)) == "damaged", "a missing one")
        return f"{self.megabytes} MB, sent in {sent:.1f} s, told {len(told)} times"

    def tells_the_time(self) -> str:
        """The storage's clock, by which leases run out, is near this machine's."""
        self.storage.put("clock", b"")
        written = self.storage.written("clock")
        must(written is not None and abs(written - time.time()) < 30, written)
        must(self.storage.written("nothing") is None, "a missing file")
        return f"{time.time() - (written or 0):+.1f} s"

    def refuses_a_damaged_ledger(self) -> str:
        """A ledger that was cut short or changed on the way is refused; a bucket without one is no sweep."""
        paths = self._paths("drives", "ledger")
        with driving(paths, print) as drive:
            ledger = Ledger.create(paths.root, durable=False)
            ledger.append([Event("sweep_created", {"name": "ledger", "spec": {}, "versions": {}, "space": {}})])
            ledger.close()
        must(drive.problem is None, drive.problem)
        must(refresh(self._paths("reads", "ledger")), "a reader elsewhere")
        storage = self.other("ledger")
        name = json.loads(storage.get("snapshot.json") or b"{}")["name"]
        sound = storage.get(name) or b""
        for turn, bad in enumerate((sound[:-100], sound[:-1] + bytes([sound[-1] ^ 1]))):
            storage.put(name, bad)
            told = kind_of(lambda turn=turn: refresh(self._paths(f"reads-{turn}", "ledger")))
            must(told == "damaged", told)
        must(not refresh(self._paths("reads", "never")), "a sweep that never was")
        return "truncated and changed: damaged"

    def says_that_a_bucket_is_gone(self) -> str:
        """Reading, listing and writing in a bucket that is not there are told from finding nothing."""
        scheme, _, _ = self.url.partition("://")
        gone = open_storage(f"{scheme}://gone-{uuid.uuid4().hex}/x")
        acts: dict[str, Callable[[], object]] = {
            "read": lambda: gone.get("x"),
            "fetch": lambda: gone.fetch("x", self.scratch / "x"),
            "list": gone.files,
            "folders": gone.folders,
            "write": lambda: gone.put("x", b""),
            "write new": lambda: gone.put_new("x", b""),
            "send": lambda: gone.send(Path(__file__), "x"),
        }
        told = {name: kind_of(act) for name, act in acts.items()}
        must(set(told.values()) == {"gone"}, told)
        return ", ".join(acts)

    def refuses_wrong_keys(self) -> str:
        """Who has no right is told so."""
        told = self._asked_with(wrong_keys(self.url))
        if set(told.values()) == {"answered"}:
            return "NOT REFUSED: this server asks for no keys"
        must(set(told.values()) == {"denied"}, told)
        return ", ".join(told)

    def says_that_nobody_answers(self) -> str:
        """An address where nobody answers is told from a refusal."""
        told = self._asked_with(nowhere(self.url))
        must(set(told.values()) == {"unreachable"}, told)
        return ", ".join(told)

    def clean(self) -> str:
        """What was written is removed."""
        storage = open_storage(self.url)
        storage.delete(storage.files())
        must(storage.files() == {}, storage.files())
        return "nothing is left"

    def _paths(self, home: str, name: str) -> SweepPaths:
        os.environ["STOCKPOT_WORK"] = str(self.scratch / "homes" / home)
        return SweepPaths.of(self.url, name)

    def _asked_with(self, changed: Mapping[str, str]) -> dict[str, str]:
        words = [sys.executable, __file__, f"{self.url}/one", "--ask"]
        done = subprocess.run(words, capture_output=True, text=True, check=False, env={**os.environ, **changed})
        must(done.returncode == 0 and not done.stderr, done.stderr)
        found: dict[str, str] = json.loads(done.stdout)
        return found


def wrong_keys(url: str) -> dict[str, str]:
    """What the environment would hold with keys that nobody gave out."""
    account = {**_azure_account(), "key": KEY}
    return {
        "s3": {"AWS_ACCESS_KEY_ID": "AKIAWRONG", "AWS_SECRET_ACCESS_KEY": KEY},
        "gs": {"GOOGLE_APPLICATION_CREDENTIALS": os.devnull},
        "az": {"AZURE_STORAGE_CONNECTION_STRING": AZURE.format_map(account)},
    }[url.partition("://")[0]]


def nowhere(url: str) -> dict[str, str]:
    """What the environment would hold with an address where nobody listens."""
    account = {**_azure_account(), "where": f"{NOWHERE}/account"}
    return {
        "s3": {"AWS_ENDPOINT_URL": NOWHERE},
        "gs": {"STORAGE_EMULATOR_HOST": NOWHERE},
        "az": {"AZURE_STORAGE_CONNECTION_STRING": AZURE.format_map(account)},
    }[url.partition("://")[0]]


def _azure_account() -> dict[str, str]:
    """Name, key and address of the account that the environment means."""
    told = os.environ.get("AZURE_STORAGE_CONNECTION_STRING", "")
    parts = dict(part.split("=", 1) for part in told.split(";") if "=" in part)
    name = parts.get("AccountName") or os.environ.get("AZURE_STORAGE_ACCOUNT_NAME", "account")
    key = parts.get("AccountKey") or os.environ.get("AZURE_STORAGE_ACCOUNT_KEY", KEY)
    where = parts.get("BlobEndpoint", f"https://{name}.blob.core.windows.net")
    return {"name": name, "key": key, "where": where}


def ask(url: str) -> None:
    """Print how a list, a read and a write end, as JSON."""
    acts: dict[str, Callable[[], object]] = {
        "list": lambda: open_storage(url).files(),
        "read": lambda: open_storage(url).get("a.txt"),
        "write": lambda: open_storage(url).put("denied", b""),
    }
    with ThreadPoolExecutor(len(acts)) as pool:  # each may wait a minute
        print(json.dumps(dict(zip(acts, pool.map(kind_of, acts.values()), strict=True))))


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def run(url: str, megabytes: int, waiting: bool) -> int:
    """Print the table; 1 where something does not hold.

    Args:
        url: of the bucket and a prefix.
        megabytes: of the large file.
        waiting: whether to ask also where nobody answers.
    """
    package = SCHEMES[url.partition("://")[0]].package
    print(f"{url} through {package} {importlib.metadata.version(package)}")
    failed = 0
    with tempfile.TemporaryDirectory() as scratch:
        contract = Contract(url, megabytes, Path(scratch))
        checks = [
            contract.writes_and_reads,
            contract.lists_what_another_wrote,
            contract.lets_one_writer_through,
            contract.leases_to_one_driver,
            contract.carries_a_large_file,
            contract.tells_the_time,
            contract.refuses_a_damaged_ledger,
            contract.says_that_a_bucket_is_gone,
            contract.refuses_wrong_keys,
            *([contract.says_that_nobody_answers] if waiting else []),
            contract.clean,
        ]
        for check in checks:
            began = time.perf_counter()
            try:
                told = check()
            except (StorageError, AssertionError) as error:
                failed, told = failed + 1, f"FAILED: {error}"
            print(f"{check.__name__.replace('_', ' '):<32} {time.perf_counter() - began:6.1f} s  {told}", flush=True)
    return int(failed > 0)


def main() -> int:
    """Read the arguments."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("url")
    parser.add_argument("--megabytes", type=int, default=120)
    parser.add_argument("--no-waiting", action="store_true", help="leave out the address where nobody answers")
    parser.add_argument("--ask", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.ask:
        ask(arguments.url)
        return 0
    return run(arguments.url, arguments.megabytes, not arguments.no_waiting)


if __name__ == "__main__":
    sys.exit(main())
