"""Residents without a running Ray: what the actors answer, which sweeps have them, and in what order things begin."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import pickle
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from fake_endpoint import FakeEndpoint

from cluster.base import ClusterLost, Node
from pipelines import calls
from pipelines.calls import Answers, Identity, Role
from pipelines.memo import Claim, Cost, Entry, Unanswered
from pipelines.stage import Devices, OutOfMemory, Services, UserError
from sweeps import backend as ray_backend
from sweeps import callers, resident_clients, residents, secret_values
from sweeps.failures import Failure
from sweeps.host_plan import SHARED, HostPlan
from sweeps.load import LoadedSweep, load_text
from sweeps.paths import SweepPaths
from sweeps.resident_clients import Actors, HostFailed, error_of
from sweeps.residents import HostActor, MemoActor
from sweeps.worker import Setup, services


class Small:
    """Answers with lengths, and fails as the item says."""

    role: ClassVar[Role] = "reranker"
    remote: ClassVar[bool] = False

    @staticmethod
    def identify(spec: Mapping[str, Any]) -> Identity:
        return Identity(1, "small")

    @classmethod
    def load(cls, spec: Mapping[str, Any], devices: Devices, services: Services) -> Small:
        assert services.cache == "the cache"
        return cls()

    def answer(self, method: str, items: Sequence[Any], parameters: Mapping[str, Any]) -> Answers:
        failures: dict[str, Exception] = {
            "user": UserError("give another model"),
            "oom": OutOfMemory("1 row did not fit"),
            "other": ValueError("odd"),
        }
        for item in items:
            if item in failures:
                raise failures[item]
        return [(str(len(item)).encode(), Cost(1.0)) for item in items]


class SmallFar(Small):
    """The same elsewhere."""

    remote: ClassVar[bool] = True


@pytest.fixture(autouse=True)
def kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(calls.MODELS, "small", f"{__name__}:Small")
    monkeypatch.setitem(calls.MODELS, "small_far", f"{__name__}:SmallFar")
    monkeypatch.setattr(residents, "enter", lambda setup: None)


@pytest.fixture
def actor(tmp_path: Path) -> Iterator[HostActor]:
    made = HostActor(Setup(Devices(2.0), str(tmp_path), {}, "the cache"), str(tmp_path / "logs" / "host-models.log"))
    yield made
    made._host.close()


def ask(actor: HostActor, *items: str) -> tuple[list[Any], Failure | None]:
    return asyncio.run(actor.ask({"kind": "small"}, "scores", items, {}))


def test_a_host_answers_many_at_once(actor: HostActor) -> None:
    async def several() -> list[Any]:
        return await asyncio.gather(*(actor.ask({"kind": "small"}, "scores", ["x" * i], {}) for i in range(20)))

    assert [answers[0][0] for answers, _ in asyncio.run(several())] == [str(i).encode() for i in range(20)]


@pytest.mark.parametrize(
    ("item", "kind", "error"),
    [("user", "user", UserError), ("oom", "oom", OutOfMemory), ("other", "unknown", HostFailed)],
)
def test_failures_are_typed_on_both_sides(actor: HostActor, item: str, kind: str, error: type[Exception]) -> None:
    answers, failure = ask(actor, item)
    assert (answers, failure is not None and failure.kind) == ([], kind)
    assert type(error_of(pickle.loads(pickle.dumps(failure)))) is error
    assert ask(actor, "four")[0][0][0] == b"4"


def test_what_a_model_fails_of_leaves_the_host_without_secrets(
    actor: HostActor, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(secret_values, "_OWN", [secret_values.Masks(["another model"])])
    _, failure = ask(actor, "user")
    assert failure is not None
    assert failure.message == f"give {secret_values.MASK}"
    assert secret_values.MASK in failure.traceback
    assert "UserError: give another" not in failure.traceback + capfd.readouterr().err


def test_answers_and_their_lack_cross_the_wire() -> None:
    for answer in ((b"value", Cost(1.0, 2, 0.5)), (Unanswered("down"), Cost(3.0))):
        assert resident_clients._answer(resident_clients.answer_row(answer)) == answer  # type: ignore[arg-type]


def test_a_host_writes_no_file_before_it_is_told_to(actor: HostActor, tmp_path: Path) -> None:
    assert list(tmp_path.iterdir()) == []


def test_a_host_whose_node_has_ended_asks_no_endpoint_and_leaves_the_answer_to_its_successor(
    actor: HostActor, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = os.getppid()

    def asked(address: str) -> Any:
        spec = {"kind": "openai_chat", "base_url": address, "model": "fake"}
        return asyncio.run(asyncio.wait_for(actor.ask(spec, "generate", [{"prompt": "hello"}], {}), 1.0))

    with FakeEndpoint().serving() as server:
        monkeypatch.setattr(os, "getppid", lambda: 1)
        with pytest.raises(TimeoutError):
            asked(server.address)
        assert server.asked == []
        monkeypatch.setattr(os, "getppid", lambda: node)
        assert asked(server.address)[1] is None
        assert len(server.asked) == 1


def test_endpoints_are_checked(actor: HostActor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(residents, "current_setup", lambda: Setup(Devices(), str(tmp_path)))
    with FakeEndpoint().serving() as server:
        good = {"base_url": server.address, "model": "fake"}
        assert asyncio.run(actor.check([good])) is None
        server.key = "wanted"
        failure = asyncio.run(actor.check([good]))
    assert failure is not None
    assert (failure.kind, "answers 401" in failure.message) == ("user", True)
    down = asyncio.run(actor.check([good]))
    assert down is not None
    assert "does not answer" in down.message


def test_the_memo_knows_who_was_heard_and_when_something_was_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    memo = MemoActor(str(tmp_path))
    assert memo.quiet("lease") == (float("inf"), 0.0)
    assert memo.serve("lease", "claim", ["k"], "me", 1) == [("yours", None, None)]
    now[0] += 5
    memo.serve("other", "fulfil", [("k", b"v", (1.0, 2, 0.5), "embed")], "me")
    now[0] += 2
    assert memo.quiet("lease") == (7.0, 2.0)
    assert memo.quiet("other") == (2.0, 2.0)
    [row] = memo.serve("lease", "claim", ["k"], "me", 1)
    assert resident_clients._claim(row) == Claim("hit", b"v", Cost(1.0, 2, 0.5))
    memo.close()


def test_a_spec_goes_to_its_roles_process_and_endpoints_to_the_shared_one() -> None:
    actors = Actors("m", "shared", {"reranker": "own", "judge": "theirs"})
    assert actors.of({"kind": "small"}) == "own"
    assert actors.of({"kind": "small", "role": "judge"}) == "theirs"
    assert actors.of({"kind": "small", "role": "embedder"}) == "shared"
    assert actors.of({"kind": "small_far", "role": "judge"}) == "shared"


def test_the_memos_client_and_its_actor_speak_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memo = MemoActor(str(tmp_path))
    serve = SimpleNamespace(remote=lambda *words: memo.serve(*pickle.loads(pickle.dumps(words))))
    monkeypatch.setattr(resident_clients, "find", lambda name: SimpleNamespace(serve=serve))
    monkeypatch.setitem(sys.modules, "ray", FakeRay(0))
    client = resident_clients.RayMemo(Actors("m", "s", {}), "lease")
    assert [claim.state for claim in client.claim(["a", "b"], "me", 1)] == ["yours", "later"]
    client.renew(["a"], "me")
    client.fulfil([Entry("a", b"v", Cost(1.0, 2, 0.5), "embed")], "me")
    assert client.claim(["a"], "me") == [Claim("hit", b"v", Cost(1.0, 2, 0.5))]
    client.release(["b"], "me")
    assert (client.stats().entries, client.stats().hits) == (1, 1)
    memo.close()


class RayActorError(Exception):
    """As Ray's."""


class FakeRay:
    """`ray.get` that dies so many times."""

    class exceptions:
        RayActorError = RayActorError
        GetTimeoutError = TimeoutError

    def __init__(self, deaths: int) -> None:
        self.left = deaths
        self.asked = 0

    def get(self, future: Any, timeout: float | None = None) -> Any:
        if future == "ready":
            return 1
        self.asked += 1
        if self.left:
            self.left -= 1
            raise RayActorError("died")
        return future


class FakeHandle:
    """An actor that comes back."""

    class ready:
        remote = staticmethod(lambda: "ready")


@pytest.mark.parametrize(("deaths", "asked"), [(0, 1), (1, 2), (2, 3)])
def test_what_died_is_asked_again(monkeypatch: pytest.MonkeyPatch, deaths: int, asked: int) -> None:
    fake = FakeRay(deaths)
    monkeypatch.setitem(sys.modules, "ray", fake)
    assert resident_clients.again(lambda: "answer", FakeHandle) == "answer"
    assert fake.asked == asked


def test_what_kills_its_host_each_time_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeRay(99)
    monkeypatch.setitem(sys.modules, "ray", fake)
    with pytest.raises(RayActorError):
        resident_clients.again(lambda: "answer", FakeHandle)
    assert fake.asked == resident_clients.DEATHS


RAG = """
name: s
pipeline:
  type: rag
  corpus: corpus
  questions: questions.jsonl
  chunk: {type: fixed_characters}
  retrieve: {type: bm25}
  generate: {type: openai, base_url: "http://a/v1", model: m}
parameters: {retrieve.k1: [1.0, 1.5]}
method: grid
metric: token_f1
"""
CUSTOM = """
name: s
pipeline: {type: custom, import_path: "toy:Toy", total: 3, metrics: {loss: minimize}ASKS}
parameters: {kwargs.x: [1, 2]}
method: grid
metric: loss
"""


DPO = """
name: s
pipeline:
  type: dpo
  base_model: owner/model
  datasets: {train: {path: questions.jsonl, type: preference}}
  max_steps: 3
metric: loss
"""


def load(folder: Path, text: str) -> LoadedSweep:
    (folder / "corpus").mkdir()
    (folder / "corpus" / "a.txt").write_text("A text.")
    row = '{"question": "Who?", "answer": "Ann", "documents": ["a.txt"]}\n'
    (folder / "questions.jsonl").write_text(row)
    (folder / "toy.py").write_text("class Toy:\n    pass\n")
    return load_text(text.encode(), folder)


class FakeCluster:
    """Two cores."""

    nodes = (Node(2.0),)
    head = "127.0.0.1:1"
    embedded = True

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.closed = False

    def close(self) -> None:
        self.closed = True


class Recorder:
    """Instead of `Residents`."""

    events: ClassVar[list[Any]] = []
    refuse: ClassVar[bool] = False
    memo = staticmethod(lambda caller: f"memo of {caller}")
    hosts = staticmethod(lambda: "hosts")

    def __init__(self, plan: HostPlan, paths: SweepPaths, setup: Setup) -> None:
        self.events.append([process.name for process in plan.processes])

    def check(self, endpoints: Sequence[Mapping[str, Any]]) -> None:
        self.events.append([one["base_url"] for one in endpoints])
        if self.refuse:
            raise UserError("it is down")

    def open(self) -> None:
        self.events.append("open")

    def close(self) -> None:
        self.events.append("close")


class Watch:
    """A watch of a head that answers, until somebody says otherwise."""

    address, silent, lost, severed, closed = "here:1", 0.0, False, False, False

    def close(self) -> None:
        self.closed = True

    @contextlib.contextmanager
    def bounded(self) -> Iterator[None]:
        yield


@pytest.fixture
def backend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ray_backend.RayBackend]:
    cluster = FakeCluster(tmp_path)
    monkeypatch.setattr(ray_backend, "connect", lambda: cluster)
    monkeypatch.setattr(ray_backend, "Residents", Recorder)
    monkeypatch.setattr(ray_backend, "HeadWatch", lambda head, give_up: Watch())
    monkeypatch.setattr(Recorder, "events", [])

    def make(text: str) -> ray_backend.RayBackend:
        loaded = load(tmp_path, text)
        made = ray_backend.RayBackend(loaded, loaded.paths)
        assert made._cluster is cluster  # type: ignore[comparison-overlap]
        return made

    return make


def test_a_pipeline_that_asks_no_model_has_no_actors(backend: Callable[[str], ray_backend.RayBackend]) -> None:
    made = backend(CUSTOM.replace("ASKS", ""))
    assert (made.placement.slots, made.placement.cpus) == (1, 2.0)
    assert services(made._setup).memo is None
    made.close()
    assert Recorder.events == []


@pytest.mark.parametrize("text", [RAG, CUSTOM.replace("ASKS", ", asks_models: true")])
def test_one_that_asks_models_has_hosts_before_its_trials(
    backend: Callable[[str], ray_backend.RayBackend], text: str
) -> None:
    made = backend(text)
    assert Recorder.events == [[SHARED], ["http://a/v1"] if text == RAG else []]
    assert (made.placement.slots, made.placement.cpus, made.placement.gpus) == (4, 0.1, 0.0)
    given = services(made._setup, "lease")
    assert given.memo is not None
    assert given.hosts is not None
    assert (given.memo(), given.hosts()) == ("memo of lease", "hosts")
    made.close()
    assert Recorder.events[-1] == "close"


def test_a_lost_head_is_watched_no_longer_once_it_is_told(
    backend: Callable[[str], ray_backend.RayBackend], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = backend(CUSTOM.replace("ASKS", ""))
    watch = made._watch
    made._refuse_lost()
    watch.lost = True  # type: ignore[misc]
    with pytest.raises(ClusterLost, match="which this command had started") as lost:
        made._refuse_lost()
    assert lost.value.mend == "resume the sweep"
    monkeypatch.setattr(made, "_embedded", False)
    with pytest.raises(ClusterLost, match="here:1") as lost:
        made._refuse_lost()
    assert lost.value.mend.startswith("raise one again")
    assert watch.closed  # type: ignore[attr-defined]
    made.close()


def test_a_node_that_ended_under_the_driver_is_told_from_a_disk_that_is_full(
    backend: Callable[[str], ray_backend.RayBackend], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = backend(CUSTOM.replace("ASKS", ""))
    monkeypatch.setattr(made, "_embedded", False)
    monkeypatch.setattr(Watch, "lost", property(lambda watch: watch.severed))
    task = callers.ray.exceptions.RayTaskError("f", "", OSError("of a task")).as_instanceof_cause()
    for other in (OSError(errno.ENOSPC, "No space left on device"), FileNotFoundError("of a library"), task):
        assert isinstance(other, OSError)
        with pytest.raises(type(other)), made._attached():
            raise other
    assert not made._watch.lost

    def wait(*asked: object, **how: object) -> None:
        raise OSError("Broken pipe")  # as Ray's check_status does

    monkeypatch.setattr(callers.ray, "wait", wait)
    monkeypatch.setattr(callers.Caller, "begin", lambda *call: None)
    monkeypatch.setattr(callers.Callers, "_free", lambda own: callers.Caller(callers.CallActor(None), 0))
    pending = made.start("math:sqrt", {})
    with pytest.raises(ClusterLost, match=r"this machine's node of the Ray cluster \(here:1\) has ended") as lost:
        pending.result()
    assert lost.value.mend == "start it, or the cluster, again, then resume the sweep"
    assert made._watch.lost
    made.close()


def test_a_process_that_hangs_says_so_and_is_ended_whatever_else_hangs(
    backend: Callable[[str], ray_backend.RayBackend],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    made, told, ended, stuck = backend(CUSTOM.replace("ASKS", "")), [], [], threading.Event()
    monkeypatch.setattr(ray_backend.os, "_exit", ended.append)
    made._on_hang = told.append
    made._give_up()
    why = "Ray, which this command had started here, has not answered for 0 s: something ended it"
    assert (told, ended) == ([why], [130])
    assert why in capfd.readouterr().err
    monkeypatch.setattr(ray_backend, "TELL_SECONDS", 0.01)
    made._on_hang = lambda why: told.append(str(stuck.wait(60)))
    made._give_up()
    assert (len(told), ended) == (1, [130, 130])
    stuck.set()
    made.close()


def test_preference_tuning_shares_the_memo_and_no_models(backend: Callable[[str], ray_backend.RayBackend]) -> None:
    made = backend(DPO)
    assert Recorder.events == [[]]
    assert (made.placement.slots, made.placement.cpus) == (1, 2.0)
    given = services(made._setup, "lease")
    assert (given.memo is not None, given.hosts) == (True, None)
    made.close()
    assert Recorder.events[-1] == "close"


def test_an_endpoint_that_is_down_ends_it_before_anything_is_written(
    backend: Callable[[str], ray_backend.RayBackend], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(Recorder, "refuse", True)
    with pytest.raises(UserError, match="it is down"):
        backend(RAG)
    assert "open" not in Recorder.events
    assert not (tmp_path / "stockpot-runs").exists()
