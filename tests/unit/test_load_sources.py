"""`sweep://NAME/{best|soup|TRIAL}`, against a ledger as a driver writes it."""

import hashlib
import json

import pytest
from sweep_files import SFT, folder_with_data, load, problems

from evaluators.base import Score
from sweeps.events import Event
from sweeps.ledger import Ledger
from sweeps.sources import SourceError, resolve_source, weights_hash
from sweeps.trial import Attempt, Run

VALUES = {
    "0000-aaaaaaaa": (27, 1.5),
    "0001-bbbbbbbb": (27, 0.5),
    "0002-cccccccc": (9, 0.1),
    "0003-dddddddd": (27, float("nan")),
}


@pytest.fixture
def sweep(tmp_path):
    """A finished sweep `demo` under `runs`: its best run at the highest rung is 0001."""
    loaded = load(
        tmp_path, SFT + "storage: runs\nparameters: {lora_r: [1, 2, 3, 4]}\nearly_terminate: {type: asha, min: 3}\n"
    )
    loaded.paths.root.mkdir(parents=True)
    loaded.paths.resolved_spec.write_text(json.dumps(loaded.record()))
    ledger = Ledger.create(loaded.paths.root)
    events = [Event("sweep_created", {"name": "demo", "spec": loaded.record(), "versions": {}, "space": {}})]
    for order, (trial, (resource, value)) in enumerate(VALUES.items()):
        run = Run(trial, 0)
        score = Score("loss", "tune", value, 0.1, 10, 0, "minimize")
        events += [
            Event(
                "suggested",
                {
                    "trial": trial,
                    "order": order,
                    "config": {},
                    "parameters": {},
                    "choices": {},
                    "distributions": {},
                    "attributes": {},
                    "duplicate_of": None,
                },
            ),
            Event(
                "lease_started",
                {
                    "lease": trial,
                    "run": run.id,
                    "attempt": 0,
                    "from_resource": 0,
                    "from_checkpoint": None,
                    "milestones": [resource],
                    "changes": None,
                },
            ),
            Event(
                "reported",
                {
                    "lease": trial,
                    "run": run.id,
                    "attempt": 0,
                    "resource": resource,
                    "scores": [score.record()],
                    "telemetry": {},
                    "checkpoint": f"checkpoint-{resource}",
                    "worker_seconds": 1.0,
                },
            ),
            Event("run_ended", {"run": run.id, "state": "finished", "reason": ""}),
        ]
        folder = loaded.paths.checkpoint(Attempt(run, 0), resource)
        folder.mkdir(parents=True)
        (folder / "adapter_model.safetensors").write_bytes(trial.encode())
        (folder / "optimizer.safetensors").write_bytes(b"moments")
    ledger.append(events)
    ledger.close()
    return loaded


def resolved(sweep, text):
    return resolve_source(text, sweep.paths.root.parent, sweep.folder)


def checkpoint(sweep, trial):
    return str(sweep.paths.checkpoint(Attempt(Run(trial, 0), 0), VALUES[trial][0]))


def test_best_is_the_best_run_at_the_highest_rung(sweep):
    source = resolved(sweep, "sweep://demo/best")
    assert source.path == checkpoint(sweep, "0001-bbbbbbbb")
    weights = b"adapter_model.safetensors\0" + hashlib.sha256(b"0001-bbbbbbbb").digest()
    assert source.hash == hashlib.sha256(weights).hexdigest()


@pytest.mark.parametrize("what", ["0002-cccccccc", "0002"])
def test_a_trial_by_name_or_number(sweep, what):
    assert resolved(sweep, f"sweep://demo/{what}").path == checkpoint(sweep, "0002-cccccccc")


def test_the_name_may_be_a_folder(sweep):
    assert resolved(sweep, "sweep://runs/demo/best") == resolved(sweep, f"sweep://{sweep.paths.root}/best")


def test_the_last_finished_soup(sweep):
    with pytest.raises(SourceError, match="has no finished soup; stockpot soup demo makes one"):
        resolved(sweep, "sweep://demo/soup")
    ledger = Ledger.open(sweep.paths.root)
    folder = sweep.paths.soup("soup-1")
    folder.mkdir(parents=True)
    (folder / "adapter_model.safetensors").write_bytes(b"soup")
    ledger.append(
        [
            Event("soup_started", {"soup": "soup-1", "method": "greedy", "metric": "loss", "ingredients": []}),
            Event(
                "soup_finished",
                {"soup": "soup-1", "ingredients": [], "folder": str(folder), "score": None, "hash": "x"},
            ),
            Event("soup_started", {"soup": "soup-2", "method": "greedy", "metric": "loss", "ingredients": []}),
        ]
    )
    ledger.close()
    assert resolved(sweep, "sweep://demo/soup").path == str(folder)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("sweep://dmeo/best", "there is no sweep 'dmeo' under .*; did you mean 'demo'"),
        ("sweep://demo", "is not sweep://NAME/best"),
        ("sweep://demo/bset", "has no trial 'bset'; did you mean 'best'"),
    ],
)
def test_names_that_lead_nowhere(sweep, text, said):
    with pytest.raises(SourceError, match=said):
        resolved(sweep, text)


def test_weights_that_are_gone_are_said_to_be(sweep):
    import shutil

    shutil.rmtree(checkpoint(sweep, "0001-bbbbbbbb"))
    with pytest.raises(SourceError, match="is not there any more"):
        resolved(sweep, "sweep://demo/best")


def test_the_hash_is_of_the_weights_alone(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"a")
    before = weights_hash(tmp_path)
    (tmp_path / "optimizer.safetensors").write_bytes(b"b")
    (tmp_path / "config.json").write_text("{}")
    assert weights_hash(tmp_path) == before
    (tmp_path / "model.safetensors").write_bytes(b"c")
    assert weights_hash(tmp_path) != before


def test_the_door_resolves_sources_to_path_and_hash_also_when_swept(sweep, tmp_path):
    text = (
        SFT.replace("name: demo", "name: next\nstorage: runs")
        + "parameters: {base_model: [sweep://demo/best, sweep://demo/0002, some/model]}\n"
    )
    loaded = load(tmp_path, text)
    config = loaded.resolve({"base_model": "sweep://demo/best"})
    assert config["base_model"] == checkpoint(sweep, "0001-bbbbbbbb")
    assert config["base_model_hash"] == weights_hash(sweep.paths.checkpoint(Attempt(Run("0001-bbbbbbbb", 0), 0), 27))
    assert loaded.resolve({"base_model": "some/model"})["base_model_hash"] is None
    assert "sweep://" not in json.dumps(loaded.resolve({"base_model": "sweep://demo/0002"}))
    assert "sweep://" not in loaded.spec.pipeline.base_model
    found = problems(tmp_path, text.replace("demo/0002", "demo/0009"))
    assert "has no trial '0009'" in found["parameters.base_model[1]"]


def test_a_resolved_record_keeps_what_the_name_meant(sweep, tmp_path):
    import shutil

    from sweeps.load import from_record

    folder_with_data(tmp_path)
    loaded = load(
        tmp_path,
        SFT.replace("HuggingFaceTB/SmolLM2-135M-Instruct", "sweep://demo/best").replace(
            "name: demo", "name: next\nstorage: runs"
        ),
    )
    record = json.loads(json.dumps(loaded.record()))
    shutil.rmtree(sweep.paths.root)
    assert from_record(record) == loaded
    assert from_record(record).resolve({}) == loaded.resolve({})


DISTILL = (
    SFT.replace("name: demo", "name: next\nstorage: runs")
    .replace("type: sft", "type: distill")
    .replace("  learning_rate", "  teacher: sweep://demo/top-2\n  learning_rate")
)


def test_the_best_k_are_an_ensemble_for_a_teacher_alone(sweep, tmp_path):
    best = [checkpoint(sweep, trial) for trial in ("0001-bbbbbbbb", "0000-aaaaaaaa")]
    config = load(tmp_path, DISTILL).resolve({})
    assert (config["teacher"], config["base_model_hash"]) == (best, None)
    with pytest.raises(SourceError, match="only 2 of its runs reached the top rung"):
        resolve_source("sweep://demo/top-3", sweep.paths.root.parent, sweep.folder, several=True)
    said = problems(tmp_path, DISTILL.replace("HuggingFaceTB/SmolLM2-135M-Instruct", "sweep://demo/top-2"))
    assert "is an ensemble, and one model is wanted" in said["pipeline.base_model"]


def test_a_teacher_may_be_swept_and_its_hash_tells_teachers_apart(sweep, tmp_path):
    loaded = load(
        tmp_path,
        DISTILL
        + "parameters: {teacher: [sweep://demo/top-2, sweep://demo/best, owner/name, [owner/name, sweep://demo/best]]}\n",
    )
    names = next(iter(loaded.space.all_axes())).domain.values
    found = [loaded.resolve({"teacher": name}) for name in names]
    best = checkpoint(sweep, "0001-bbbbbbbb")
    assert [config["teacher"] for config in found[1:]] == [best, "owner/name", ["owner/name", best]]
    assert found[1]["teacher_hash"] == weights_hash(sweep.paths.checkpoint(Attempt(Run("0001-bbbbbbbb", 0), 0), 27))
    assert found[2]["teacher_hash"] is None
    assert found[0]["teacher_hash"] not in (None, found[1]["teacher_hash"])


def test_an_ensemble_survives_the_record(sweep, tmp_path):
    from sweeps.load import from_record

    loaded = load(tmp_path, DISTILL)
    again = from_record(json.loads(json.dumps(loaded.record())))
    assert again == loaded
    assert again.resolve({}) == loaded.resolve({})


def test_an_ensemble_whose_checkpoints_went_says_how_to_keep_them(sweep, tmp_path):
    ledger = Ledger.open(sweep.paths.root)
    gone = {"run": "0000-aaaaaaaa/seed-0", "attempt": 0, "resource": 27, "bytes": 1}
    ledger.append([Event("checkpoint_deleted", gone)])
    ledger.close()
    assert "keep.best: 2 would have kept them all" in problems(tmp_path, DISTILL)["pipeline.teacher"]
