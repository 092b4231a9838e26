"""Python that comes with a model runs only where the sweep file says so: planted code that leaves a mark when it is imported."""

from __future__ import annotations

import ast
import json
import sys
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import transformers.dynamic_module_utils
from huggingface_hub import constants
from test_layering import TREES
from tiny import save_model

from pipelines.config import SFTConfig
from pipelines.finetune import model as finetune_model
from pipelines.finetune.model import BaseModels, load_folder, resolve
from pipelines.finetune.teacher import load_teacher
from pipelines.local_lm import LocalGenerator
from pipelines.packages import lacks_code
from pipelines.rag import model_folder
from pipelines.rag.embed_sentences import SentenceTransformers
from pipelines.rag.model_folder import find_model
from pipelines.rag.rerank_cross_encoder import CrossEncoderModel
from pipelines.rag.rerank_maxsim import MaxSimModel
from pipelines.soups.curve import Curve
from pipelines.soups.mixtures import load_mixture
from pipelines.stage import Devices, Services, UserError

PLANTED = """\
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel, LlamaPreTrainedModel, PreTrainedTokenizerFast

Path({mark!r}).touch()


class OwnConfig(LlamaConfig):
    model_type = {kind!r}


class OwnModel(LlamaModel):
    config_class = OwnConfig


class OwnCausal(LlamaForCausalLM):
    config_class = OwnConfig


class OwnScorer(LlamaPreTrainedModel):
    config_class = OwnConfig

    def __init__(self, config):
        super().__init__(config)
        self.model, self.score = LlamaModel(config), torch.nn.Linear(config.hidden_size, 1)
        self.post_init()


class OwnTokenizer(PreTrainedTokenizerFast):
    pass


class OwnPooling(torch.nn.Module):
    @classmethod
    def load(cls, path):
        return cls()


def generate(model, **settings):
    raise NotImplementedError
"""
CLASSES = {
    "AutoModel": "planted.OwnModel",
    "AutoModelForCausalLM": "planted.OwnCausal",
    "AutoModelForSequenceClassification": "planted.OwnScorer",
}


class Planted:
    """A model's folder with `planted.py` in it, which `place` has the libraries import.

    Args:
        folder: made here.
        place: `config` (a kind of model that the libraries don't know, so that it can't be loaded without the code), `model` and
            `tokenizer` (known ones with a class of their own), `generate` and `modules` (of sentence-transformers).
        task: what the weights are for, the end of the architecture's name.
    """

    def __init__(self, folder: Path, place: str, task: str = "ForCausalLM") -> None:
        self.folder = save_model(folder)
        self.mark = folder.with_suffix(".ran")
        kind = f"own_{abs(hash(str(folder)))}" if place == "config" else "llama"
        code = PLANTED.format(mark=str(self.mark), kind=kind)
        (folder / "planted.py").write_text(code)
        self._say("config.json", model_type=kind, architectures=[f"Llama{task}"], num_labels=1)
        if place == "config":
            self._say("config.json", auto_map={"AutoConfig": "planted.OwnConfig", **CLASSES})
        elif place == "model":
            self._say("config.json", auto_map=CLASSES)
        elif place == "tokenizer":
            self._say("tokenizer_config.json", auto_map={"AutoTokenizer": [None, "planted.OwnTokenizer"]})
        elif place == "generate":
            (folder / "custom_generate").mkdir()
            (folder / "custom_generate" / "generate.py").write_text(code)
        elif place == "modules":
            own = "sentence_transformers.models.Transformer", "planted.OwnPooling"
            parts = [{"idx": at, "name": str(at), "path": "", "type": name} for at, name in enumerate(own)]
            (folder / "modules.json").write_text(json.dumps(parts))

    def _say(self, name: str, **words: Any) -> None:
        path = self.folder / name
        path.write_text(json.dumps({**json.loads(path.read_text()), **words}))


@pytest.fixture(autouse=True)
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """transformers copies a model's code and imports it from there: for this test alone."""
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.startswith("transformers_modules"):
            del sys.modules[name]


def language_model(folder: Path, trust: bool, cache: Path) -> Any:
    return load_folder(folder, trust_remote_code=trust)


def base_model(folder: Path, trust: bool, cache: Path) -> Any:
    return BaseModels(str(cache)).load(str(folder), trust_remote_code=trust)


def cut_model(folder: Path, trust: bool, cache: Path) -> Any:
    return BaseModels(str(cache)).load(f"layers://1/{folder}", trust_remote_code=trust)


def adapters_base(folder: Path, trust: bool, cache: Path) -> Any:
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaForCausalLM

    plain = get_peft_model(LlamaForCausalLM.from_pretrained(save_model(cache / "plain")), LoraConfig(r=2))
    plain.peft_config["default"].base_model_name_or_path = str(folder)
    plain.save_pretrained(cache / "adapter")
    return BaseModels(str(cache)).load(str(cache / "adapter"), trust_remote_code=trust)


def teacher(folder: Path, trust: bool, cache: Path) -> Any:
    return load_teacher([str(folder)], cache, trust_remote_code=trust, device="cpu")


def generator(folder: Path, trust: bool, cache: Path) -> Any:
    spec = {"base_model": str(folder), "trust_remote_code": trust}
    return LocalGenerator.load(spec, Devices(), Services(cache=str(cache)))


def mixture(folder: Path, trust: bool, cache: Path) -> Any:
    return load_mixture(said(folder, trust), [folder, folder], "model", str(cache))


def curve(folder: Path, trust: bool, cache: Path) -> Any:
    return Curve(said(folder, trust), [folder, folder], str(cache))


def said(folder: Path, trust: bool) -> SFTConfig:
    rows = {"path": "rows.jsonl", "type": "text"}
    return SFTConfig(base_model=str(folder), datasets={"train": rows}, max_steps=1, trust_remote_code=trust)


def of_the_library(kind: Any) -> Callable[[Path, bool, Path], Any]:
    def load(folder: Path, trust: bool, cache: Path) -> Any:
        spec = {"model": str(folder), "batch_size": 1, "trust_remote_code": trust}
        return kind.load(spec, Devices(), Services(cache=str(cache)))

    return load


LOADERS: dict[str, tuple[Callable[[Path, bool, Path], Any], str, tuple[str, ...]]] = {
    "folder": (language_model, "ForCausalLM", ("config", "model", "tokenizer", "generate")),
    "base_model": (base_model, "ForCausalLM", ("config", "model")),
    "layers": (cut_model, "ForCausalLM", ("config", "model")),
    "adapter": (adapters_base, "ForCausalLM", ("config", "model")),
    "teacher": (teacher, "ForCausalLM", ("config", "model")),
    "soup": (mixture, "ForCausalLM", ("config", "model")),
    "curve": (curve, "ForCausalLM", ("config", "model")),
    "local_lm": (generator, "ForCausalLM", ("config", "model")),
    "embedding_model": (of_the_library(SentenceTransformers), "Model", ("config", "model", "tokenizer", "modules")),
    "maxsim": (of_the_library(MaxSimModel), "Model", ("config", "model", "tokenizer", "modules")),
    "cross_encoder": (
        of_the_library(CrossEncoderModel), "ForSequenceClassification", ("config", "model", "tokenizer"),
    ),
}  # fmt: skip
"""Each way to a model: how it is gone, what the model is for, and the places of code that the libraries look at on it."""
WAYS = [(way, place) for way, (_, _, places) in LOADERS.items() for place in places]
NEEDED = ("config", "modules")
"""Places of code without which there is no model; for the others the libraries have classes of their own."""


@pytest.mark.parametrize(("way", "place"), WAYS)
def test_a_model_s_own_code_does_not_run_unasked(tmp_path: Path, way: str, place: str) -> None:
    load, task, _ = LOADERS[way]
    planted = Planted(tmp_path / "model", place, task)
    if place in NEEDED:
        with pytest.raises(UserError, match=r"own, which runs only where the sweep file says trust_remote_code: true"):
            load(planted.folder, False, tmp_path)
    else:
        load(planted.folder, False, tmp_path)
    assert not planted.mark.exists(), "code of the model ran"


@pytest.mark.parametrize(("way", "place"), WAYS)
def test_it_runs_where_the_file_says_so(tmp_path: Path, way: str, place: str) -> None:
    load, task, _ = LOADERS[way]
    planted = Planted(tmp_path / "model", place, task)
    load(planted.folder, True, tmp_path)
    assert planted.mark.exists()


@pytest.mark.parametrize("trust", [False, True])
def test_code_is_fetched_only_with_the_file_s_word(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, trust: bool
) -> None:
    asked: list[list[str]] = []

    def snapshot(source: str, setting: str, files: list[str], *more: Any) -> Path:
        asked.append(list(files))
        return tmp_path

    for module in (finetune_model, model_folder):
        monkeypatch.setattr(module, "hub_snapshot", snapshot)
    resolve("some-org/some-model", tmp_path, trust_remote_code=trust)
    find_model("some-org/some-model", "embedding_model", code=trust)
    for files in asked:
        assert any(fnmatch("model.safetensors", pattern) for pattern in files)
        for code in ("modeling_own.py", "custom_generate/generate.py"):
            assert any(fnmatch(code, pattern) for pattern in files) == trust
    assert len(asked) == 2


def test_a_copy_that_was_fetched_without_the_code_is_not_whole_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else what the refusal says to do would not help."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    planted = Planted(tmp_path / "models--org--own" / "snapshots" / ("a" * 40), "config")
    (tmp_path / "models--org--own" / "refs").mkdir()
    (tmp_path / "models--org--own" / "refs" / "main").write_text("a" * 40)
    code = (planted.folder / "planted.py").read_text()
    (planted.folder / "planted.py").unlink()
    for find in (
        lambda trust: resolve("org/own", tmp_path, trust_remote_code=trust),
        lambda trust: find_model("org/own", "embedding_model", code=trust),
    ):
        assert find(False) == planted.folder
        with pytest.raises(UserError, match="can't be fetched from the model hub"):
            find(True)
    (planted.folder / "planted.py").write_text(code)
    assert resolve("org/own", tmp_path, trust_remote_code=True) == planted.folder
    assert find_model("org/own", "embedding_model", code=True) == planted.folder


@pytest.mark.parametrize(
    ("files", "lacks"),
    [
        ({}, False),
        ({"config.json": {"auto_map": {"AutoConfig": "other/repo--own.C"}}}, False),
        ({"config.json": {"auto_map": {"AutoConfig": "own.C"}}}, True),
        ({"tokenizer_config.json": {"auto_map": ["own.T", None]}}, True),
        ({"modules.json": [{"type": "sentence_transformers.models.Pooling"}]}, False),
        ({"modules.json": [{"type": "own.Pooling"}]}, True),
        ({"config.json": {"auto_map": 7}, "tokenizer_config.json": [1], "modules.json": [None, {}]}, False),
    ],
)
def test_what_names_code_that_is_not_there(tmp_path: Path, files: dict[str, Any], lacks: bool) -> None:
    for name, record in files.items():
        (tmp_path / name).write_text(json.dumps(record))
    assert lacks_code(tmp_path) == lacks
    (tmp_path / "own.py").write_text("")
    assert not lacks_code(tmp_path)


LOAD = {"from_pretrained", "from_config", "pipeline", "load_dataset", "SentenceTransformer", "CrossEncoder"}
"""What of the libraries may run a repository's code."""
BARE = {
    ("pipelines.finetune.adapters", "PeftConfig.from_pretrained"): "reads adapter_config.json alone",
    ("pipelines.data.hub", "datasets.load_dataset"): "since version 5 the library runs no scripts; it refuses the word",
    ("pipelines.data.columns", "datasets.load_dataset"): "likewise, and only its own Parquet builder",
}


def _said(node: ast.AST) -> list[ast.expr | None]:
    """What a piece of source gives `trust_remote_code` by a keyword, a default, a field, or `.get` with a default."""
    if isinstance(node, ast.Call):
        asked = [ast.unparse(word) for word in node.args[:1]] == ["'trust_remote_code'"]
        return [*(word.value for word in node.keywords if word.arg == "trust_remote_code"), *node.args[1:] * asked]
    if isinstance(node, ast.AnnAssign):
        return [node.value] * (ast.unparse(node.target) == "trust_remote_code")
    if isinstance(node, ast.arguments):
        plain = zip([*node.posonlyargs, *node.args][::-1], node.defaults[::-1], strict=False)
        named = zip(node.kwonlyargs, node.kw_defaults, strict=True)
        return [default for word, default in [*plain, *named] if word.arg == "trust_remote_code"]
    return []


def test_every_load_says_whether_code_may_run() -> None:
    """With `trust_remote_code` by name; it is false, or a value that came from the sweep file."""
    wrong, bare = [], set()
    for module, tree in TREES.items():
        for node in ast.walk(tree):
            wrong += [
                f"{module}:{value.lineno}: trust_remote_code is {value.value}"
                for value in _said(node)
                if isinstance(value, ast.Constant) and value.value is not False
            ]
            if not isinstance(node, ast.Call) or any(word.arg == "trust_remote_code" for word in node.keywords):
                continue
            name = ast.unparse(node.func)
            if (module, name) in BARE:
                bare.add((module, name))
            elif name.rpartition(".")[2] in LOAD:
                wrong.append(f"{module}:{node.lineno}: {name} does not say trust_remote_code")
    assert not wrong
    assert bare == set(BARE), "an exception that nothing needs any more"
