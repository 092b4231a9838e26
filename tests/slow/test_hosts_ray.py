"""The memo and resident models as Ray actors: shared, batched, started again, and never asked twice for what is stored."""

from __future__ import annotations

import os
import signal
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import hosted_models
import killing
import pytest
import ray

from cluster.base import Node
from cluster.local import connect
from pipelines.calls import Calls, make_calls
from pipelines.memo import LocalMemo
from pipelines.stage import Devices, Services, UserError
from sweeps.fold import fold
from sweeps.host_plan import plan_hosts
from sweeps.ledger import Ledger
from sweeps.load import load_file
from sweeps.paths import SweepPaths
from sweeps.residents import Residents
from sweeps.worker import Setup

pytestmark = pytest.mark.slow

FILE = """\
name: hosted
storage: ./runs
pipeline:
  type: custom
  import_path: hosted_models:Asking
  total: 1
  metrics: {{loss: minimize}}
  asks_models: true
  kwargs: {{folder: {folder}, own: 0, texts: {texts}, seconds: {seconds}}}
parameters: {{kwargs.own: [1, 2, 3, 4, 5, 6]}}
method: grid
metric: loss
stall_after: {stall}
"""


@pytest.fixture(scope="module")
def residents(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Residents]:
    root = tmp_path_factory.mktemp("runs") / "sweep"
    here = os.pathsep.join([str(Path(hosted_models.__file__).parent), os.environ.get("PYTHONPATH", "")])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", here)
        cluster = connect(None, cpus=2)
    spec = load_file(write(root.parent)).spec
    plan = plan_hosts(spec, [Node(2.0)])
    setup = Setup(Devices(), str(Path(hosted_models.__file__).parent), {}, None)
    root.mkdir()
    made = Residents(plan, SweepPaths(root), setup)
    made.open()
    yield made
    made.close()
    cluster.close()


def write(folder: Path, texts: int = 40, seconds: float = 0.0, stall: float = 100.0) -> Path:
    module = Path(hosted_models.__file__)
    (folder / module.name).write_text(module.read_text())
    file = folder / "hosted.yaml"
    file.write_text(FILE.format(folder=folder, texts=texts, seconds=seconds, stall=stall))
    return file


def calls(residents: Residents, owner: str) -> Calls:
    return make_calls(Services(partial(residents.memo, owner), residents.hosts), owner)


def spec(folder: Path, seconds: float = 0.0, **more: Any) -> dict[str, Any]:
    return {"kind": hosted_models.KIND, "book": f"{folder}/book.jsonl", "seconds": seconds, **more}


def await_rows(folder: Path, count: int) -> list[dict[str, Any]]:
    until = time.monotonic() + 300
    while len(rows := hosted_models.book_of(folder)) < count:
        assert time.monotonic() < until, "the model was not asked"
        time.sleep(0.01)
    return rows


def times_done(folder: Path) -> Counter[str]:
    return Counter(item for row in hosted_models.book_of(folder) for item in row.get("done", ()))


def test_two_processes_that_ask_the_same_at_once_compute_it_once(residents: Residents, tmp_path: Path) -> None:
    texts = [f"{tmp_path.name} {i}" for i in range(60)]
    task = ray.remote(num_cpus=0.1)(hosted_models.ask_there)
    model = spec(tmp_path, 0.05)
    asked = [task.remote(residents.memo, residents.hosts, f"p{i}", model, texts) for i in range(2)]
    (one, computed_one), (two, computed_two) = ray.get(asked, timeout=600)
    assert one == two == [text.upper().encode() for text in texts]
    assert computed_one + computed_two == 60
    assert times_done(tmp_path) == dict.fromkeys(texts, 1)


def test_requests_of_several_callers_share_a_batch(residents: Residents, tmp_path: Path) -> None:
    model = spec(tmp_path, 0.3)
    threads = [
        threading.Thread(target=lambda i=i: calls(residents, f"b{i}").ask("embed", model, "embed", [f"{tmp_path} {i}"]))
        for i in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    batches = [row["done"] for row in hosted_models.book_of(tmp_path) if "done" in row]
    assert sum(map(len, batches)) == 6
    assert len(batches) <= 4


def test_a_host_killed_in_mid_batch_comes_back_and_nothing_is_lost(residents: Residents, tmp_path: Path) -> None:
    texts = [f"{tmp_path} {i}" for i in range(8)]
    found: list[list[bytes]] = []
    asked = threading.Thread(
        target=lambda: found.append(calls(residents, "k").ask("embed", spec(tmp_path, 1.0), "embed", texts))
    )
    asked.start()
    [row] = await_rows(tmp_path, 1)
    os.kill(row["pid"], signal.SIGKILL)
    asked.join(120)
    assert found == [[text.upper().encode() for text in texts]]
    rows = hosted_models.book_of(tmp_path)
    assert [len(row.get("begins", ())) for row in rows] == [8, 8, 0]
    assert rows[0]["pid"] != rows[1]["pid"]
    assert times_done(tmp_path) == dict.fromkeys(texts, 1)
    assert ray.get(residents._memo.serve.remote("t", "stats")).repeated == 0


def test_a_killed_memo_comes_back_with_what_it_had(residents: Residents, tmp_path: Path) -> None:
    texts = [f"{tmp_path} {i}" for i in range(5)]
    before = calls(residents, "m").ask("embed", spec(tmp_path), "embed", texts)
    os.kill(ray.get(residents._memo.ready.remote()), signal.SIGKILL)
    again = calls(residents, "n")
    assert again.ask("embed", spec(tmp_path), "embed", texts) == before
    assert again.usage["embed"].computed == 0


def test_a_model_that_can_not_be_loaded_is_the_users_message(residents: Residents, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^this model can't be loaded$"):
        calls(residents, "u").ask("embed", spec(tmp_path, broken=True), "embed", ["x"])


def test_an_endpoint_that_is_down_is_told_by_check(residents: Residents) -> None:
    with pytest.raises(UserError, match=r"the endpoint http://127.0.0.1:9/v1 does not answer"):
        residents.check([{"base_url": "http://127.0.0.1:9/v1", "model": "m"}])


def test_a_lease_that_waits_for_models_is_known_from_a_silent_one(residents: Residents, tmp_path: Path) -> None:
    calls(residents, "lease").ask("embed", spec(tmp_path), "embed", [f"{tmp_path}"])
    assert residents.waits("lease", 60.0)
    assert not residents.waits("another", 60.0)
    time.sleep(0.3)
    assert not residents.waits("lease", 0.2)


def test_a_sweep_on_two_cores_pays_once_and_waits_for_slow_models(tmp_path: Path) -> None:
    """Six trials ask the same; a lease is silent for longer than `stall_after` while the model works batch by batch."""
    file = write(tmp_path, texts=60, seconds=3.0, stall=6.0)
    assert killing.run_to_the_end(file) == 0, file.with_suffix(".out").read_text()
    done = times_done(tmp_path)
    assert set(done.values()) == {1}
    assert len(done) == 60 + 6
    paths = load_file(file).paths
    state = fold(Ledger.read(paths.root).events())
    assert [run.phase for run in state.runs.values()] == ["finished"] * 6
    assert not any(run.failures for run in state.runs.values())
    assert (paths.logs / "host-models.log").exists()
    threads = {row["threads"] for row in hosted_models.book_of(tmp_path) if "threads" in row}
    assert threads == {str(os.cpu_count())} or (os.cpu_count() or 1) > 4


def test_kill_9_of_the_driver_ends_the_actors_and_keeps_what_was_stored(tmp_path: Path) -> None:
    file = write(tmp_path, texts=60, seconds=0.7)
    driver = killing.start(file)
    try:
        await_rows(tmp_path, 4)
        pids = killing.below(driver.pid)
    finally:
        driver.kill()
        driver.wait()
    paths = load_file(file).paths
    stored = sqlite3.connect(paths.memo / "memo.sqlite").execute("SELECT count(*) FROM entries").fetchone()[0]
    assert stored >= 8
    assert killing.run_to_the_end(file) == 0, file.with_suffix(".out").read_text()
    done = times_done(tmp_path)
    assert len(done) == 60 + 6
    assert sum(done.values()) <= len(done) + 40  # what was in flight when the driver was killed
    with LocalMemo(paths.memo) as memo:
        kinds = memo.kinds()["embed"]
    assert (kinds.entries, kinds.repeated) == (66, 0)
    assert not killing.await_gone(pids)  # Ray's own agents take a minute: they look for a head that is gone
