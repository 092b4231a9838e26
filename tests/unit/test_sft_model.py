"""From a name to a folder of safetensors: every kind of name, and what is said when nothing is there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import save_model

from pipelines.finetune.model import BaseModels, resolve
from pipelines.stage import UserError
from pipelines.weights import content_hash


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("models") / "tiny")


def test_a_folder_is_itself(folder: Path, tmp_path: Path) -> None:
    assert resolve(str(folder), tmp_path) == folder


def test_a_package_is_found_without_importing_it(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "weights_of_mine"
    (package / "deep").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / "deep" / "model").symlink_to(folder)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert resolve("package://weights_of_mine/deep/model", tmp_path) == package / "deep" / "model"
    assert resolve("package://weights_of_mine.deep/model", tmp_path) == package / "deep" / "model"
    assert "weights_of_mine" not in sys.modules


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("package://not_there_at_all/model", "no package 'not_there_at_all' is installed"),
        ("package://pytest/no.gguf", "does not exist"),
        ("/no/such/folder", "does not exist"),
        ("./model.gguf", "does not exist"),
        ("sweep://other/best", "must be resolved"),
    ],
)
def test_what_is_not_there_is_said_with_what_could_be(source: str, told: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=told):
        resolve(source, tmp_path)


def test_folders_and_files_that_are_no_model(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"neither config.json, adapter_config.json nor a GGUF file"):
        resolve(str(tmp_path), tmp_path)
    (tmp_path / "weights.bin").write_bytes(b"x")
    with pytest.raises(UserError, match="is a file but no GGUF file"):
        resolve(str(tmp_path / "weights.bin"), tmp_path)
    (tmp_path / "broken.gguf").write_bytes(b"GGUF nonsense")
    with pytest.raises(UserError, match=r"broken.gguf can't be read as GGUF"):
        resolve(str(tmp_path / "broken.gguf"), tmp_path / "cache")
    assert not [p for p in (tmp_path / "cache").iterdir() if p.is_dir()]


def test_weights_that_are_pickles_are_refused(folder: Path, tmp_path: Path) -> None:
    for path in folder.iterdir():
        if path.suffix != ".safetensors":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(UserError, match=r"can't be loaded: .*safetensors"):
        BaseModels(str(tmp_path)).load(str(tmp_path))


def test_one_model_stays_in_memory(folder: Path, tmp_path: Path) -> None:
    models = BaseModels(str(tmp_path))
    first = models.load(str(folder))
    assert models.load(str(folder)) is first
    models.drop()
    assert models.load(str(folder)) is not first


def test_the_hash_is_of_the_content(folder: Path, tmp_path: Path) -> None:
    copy = save_model(tmp_path / "copy")
    other = save_model(tmp_path / "other", seed=1)
    assert content_hash(copy) == content_hash(folder)
    assert content_hash(other) != content_hash(folder)
    assert content_hash(other, "tokenizer") == content_hash(folder, "tokenizer")


def test_a_model_that_the_hub_can_t_give_is_refused_with_the_alternatives(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="can't be fetched from the model hub") as refused:
        resolve("some-org/some-model", tmp_path)
    for alternative in ("a folder with safetensors", "GGUF", "package://", "sweep://"):
        assert alternative in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_hub_out_of_reach_fails_at_once(tmp_path: Path) -> None:
    code = (
        "import sys, time\n"
        "from pipelines.packages import hub_snapshot\n"
        "from pipelines.rag.tokens import load_tokenizer\n"
        "from pipelines.stage import UserError\n"
        "from pipelines.weights import identity_of\n"
        "snapshot = lambda name: hub_snapshot(name, 'base_model', ['*'], bool, 'Do that.')\n"
        "for call in (snapshot, load_tokenizer, identity_of):\n"
        "    started = time.monotonic()\n"
        "    try: call('some-org/some-model')\n"
        "    except UserError as error: print(time.monotonic() - started, error)\n"
        "assert 'torch' not in sys.modules\n"
    )
    env = {**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=env, check=True
    )
    told = [line.split(" ", 1) for line in done.stdout.splitlines()]
    assert len(told) == 3
    for seconds, message in told:
        assert "'some-org/some-model' is no folder here and " in message
        assert float(seconds) < 15
