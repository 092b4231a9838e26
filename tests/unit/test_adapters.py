"""Adapters of every kind on a tiny random Llama: turned off, they leave the base as it is, bit by bit."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file
from sft_runs import STOP, TOTAL, config, disturb, make_place, quick, run, same, weights

from evaluators.base import GenerationRequest, Report
from pipelines.config import FineTuneConfig, parse_pipeline
from pipelines.finetune import adapters, pissa
from pipelines.finetune.memory import Batch, _kept
from pipelines.finetune.model import LoadedModel, Quantised, load_folder, resolve
from pipelines.finetune.sft import SFTPipeline
from pipelines.finetune.shape import read_shape
from pipelines.finetune.trained import Trained as SizesOf
from pipelines.lm import LocalLanguageModel, trained_logits
from pipelines.soups import merge
from pipelines.stage import EvaluationJob, ModelSource, Services, UserError
from sweeps.footprint import checkpoint_bytes

KINDS: dict[str, dict[str, Any]] = {
    "lora": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "pissa": {"peft_init_lora_weights": "pissa", "learning_rate": 0.003},
    "pissa-rslora": {"peft_init_lora_weights": "pissa", "use_rslora": True, "learning_rate": 0.003},
    "lokr": {"adapter": "lokr"},
    "loha": {"adapter": "loha"},
    "vera": {"adapter": "vera", "learning_rate": 0.1},
    "ia3": {"adapter": "ia3", "learning_rate": 0.3},
    "prompt_tuning": {"adapter": "prompt_tuning", "num_virtual_tokens": 5, "learning_rate": 0.1},
}
"""Name -> settings of an adapter."""
IDS = torch.arange(24).reshape(2, 12) % 200


@dataclass
class Trained:
    """A run and the pipeline that made it."""

    settings: dict[str, Any]
    folder: Path
    pipeline: SFTPipeline
    reports: list[Report]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_place(tmp_path_factory.mktemp("adapters"))


def typed(place: Path, **changed: Any) -> FineTuneConfig:
    made = parse_pipeline(config(place, **changed))
    assert isinstance(made, FineTuneConfig)
    return made


def moved(place: Path, **changed: Any) -> tuple[LoadedModel, Any]:
    """The base model, and an adapter on it whose every trained number was moved."""
    loaded = load_folder(place / "model")
    loaded.model.requires_grad_(False)
    torch.manual_seed(3)
    model = adapters.inject(loaded.model, typed(place, **changed)).eval()
    if pissa.has_start(model):
        pissa.fill(model, "0", place / "cache")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return loaded, model


def assert_close(one: torch.Tensor, two: torch.Tensor) -> None:
    torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)


def answer(model: Any) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits
    return logits[:, -IDS.shape[1] :]


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_turned_off_leaves_the_base_bit_by_bit(place: Path, kind: str) -> None:
    base = answer(load_folder(place / "model").model)
    _, model = moved(place, **KINDS[kind])
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    adapted = answer(model)
    assert (adapted - base).abs().max() > 0.01
    with adapters.disabled(model) as same:
        assert same is model
        assert torch.equal(answer(model), base)
        with adapters.disabled(model):
            pass
        assert torch.equal(answer(model), base), "an inner one must not turn it on again"
    assert torch.equal(answer(model), adapted)
    assert [name for name, parameter in model.named_parameters() if parameter.requires_grad] == trained


def test_without_an_adapter_there_is_none_to_turn_off(place: Path) -> None:
    model = load_folder(place / "model").model
    with pytest.raises(TypeError, match="all weights are trained"), adapters.disabled(model):
        pass


@pytest.fixture(scope="module", params=quick(KINDS, "lora", "lokr", "pissa-rslora", "prompt_tuning"))
def trained(request: pytest.FixtureRequest, place: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A run of each kind, in a pipeline that stays."""
    folder, pipeline = tmp_path_factory.mktemp("trained"), SFTPipeline()
    settings = config(place, lora_dropout=0.0, max_steps=20) | KINDS[request.param]
    reports = run(settings, folder, (STOP, 20), pipeline, services=Services(cache=str(place / "cache")))
    return Trained(settings, folder, pipeline, reports)


def test_the_loss_falls_and_only_the_adapter_was_trained(trained: Trained) -> None:
    first, last = trained.reports
    fell = 0.003 if trained.settings.get("adapter") == "prompt_tuning" else 0.03  # a random model hardly listens
    assert last.scores[0].value < first.scores[0].value - fell
    before, after = weights(trained.folder / f"checkpoint-{STOP}"), weights(trained.folder / "checkpoint-20")
    assert before.keys() == after.keys()
    stayed = [name for name in before if torch.equal(before[name], after[name])]
    assert stayed == [name for name in before if name in ("base_model.vera_A", "base_model.vera_B")]
    frozen = {name: value for name, value in after.items() if not name.startswith("base_model.vera_")}
    count = sum(value.numel() for value in frozen.values())
    count = count // 2 if trained.settings.get("peft_init_lora_weights") == "pissa" else count
    assert last.telemetry["train/trainable_parameters"] == count


def test_plain_peft_answers_as_the_checkpoint_was_scored(trained: Trained, place: Path) -> None:
    folder = trained.folder / "checkpoint-20"
    plain = PeftModel.from_pretrained(load_folder(place / "model").model, str(folder)).eval()
    ours = adapters.attach(load_folder(place / "model").model, folder)
    assert_close(answer(plain), answer(ours))
    job = EvaluationJob(
        trained.settings, ModelSource(trained.settings["base_model"], str(folder)), "tune", ({"type": "loss"},)
    )
    [score] = trained.pipeline.evaluate(job)
    assert score.value == pytest.approx(trained.reports[-1].scores[0].value, rel=1e-5)


def test_the_base_is_as_it_was_bit_by_bit(trained: Trained, place: Path) -> None:
    kept = trained.pipeline._base(str(place / "model"), typed(place), None, "cpu").model
    fresh = load_folder(place / "model").model
    assert not hasattr(kept, "peft_config")
    ours, theirs = kept.state_dict(), fresh.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert torch.equal(answer(kept), answer(fresh))


def test_a_stopped_run_goes_on_bit_by_bit(trained: Trained, tmp_path: Path) -> None:
    settings = trained.settings | {"max_steps": TOTAL}
    services = Services(cache=str(tmp_path / "cache"))
    run(settings, tmp_path / "whole", (STOP, TOTAL), services=services)
    run(settings, tmp_path / "cut", (STOP, TOTAL), stop=STOP, services=services)
    disturb()
    start = str(tmp_path / "cut" / f"checkpoint-{STOP}")
    again = Services(cache=str(tmp_path / "another"))
    run(settings, tmp_path / "cut", (TOTAL,), start=start, start_resource=STOP, services=again)
    assert same(tmp_path / "whole" / f"checkpoint-{TOTAL}", tmp_path / "cut" / f"checkpoint-{TOTAL}")
    assert not same(Path(start), tmp_path / "cut" / f"checkpoint-{TOTAL}")
    assert not list(tmp_path.glob("another/pissa*")), "a run that goes on needs no singular vectors"


def test_it_is_folded_into_its_base_or_refused(trained: Trained, tmp_path: Path) -> None:
    folder = trained.folder / "checkpoint-20"
    if trained.settings.get("adapter") == "prompt_tuning":
        with pytest.raises(UserError, match=r"virtual tokens .* can't be folded into weights"):
            resolve(str(folder), tmp_path)
        return
    folded = load_folder(resolve(str(folder), tmp_path)).model
    attached = adapters.attach(load_folder(Path(trained.settings["base_model"])).model, folder)
    assert_close(answer(folded), answer(attached))


def test_answers_do_not_depend_on_a_batch(trained: Trained, place: Path) -> None:
    loaded = load_folder(place / "model")
    model = adapters.attach(loaded.model, trained.folder / "checkpoint-20")
    asked = [
        GenerationRequest(prompt, max_new_tokens=6) for prompt in ("1+1=", "a much longer question of 12+30=", "7")
    ]
    pairs = [(request.prompt, "12") for request in asked]
    together, alone = (LocalLanguageModel(model, loaded.tokenizer, batch_size=size) for size in (3, 1))
    assert [made.text for made in together.generate(asked)] == [made.text for made in alone.generate(asked)]
    ours, theirs = together.loglikelihood(pairs), alone.loglikelihood(pairs)
    assert [nats for nats, _ in ours] == pytest.approx([nats for nats, _ in theirs], rel=1e-4)
    prompts = [request.prompt for request in asked]
    assert together.next_logits(prompts, [5, 9])[0] == pytest.approx(alone.next_logits(prompts, [5, 9])[0], rel=1e-3)


def test_a_soup_of_two_is_dense_arithmetic(trained: Trained, tmp_path: Path) -> None:
    parts = [(trained.folder / f"checkpoint-{step}", weight) for step, weight in ((STOP, 0.3), (20, 0.7))]
    folders = [[str(folder), weight] for folder, weight in parts]
    made = merge({"ingredients": folders, "out": str(tmp_path / "soup"), "cache": str(tmp_path / "cache")})
    assert made["kind"] == "adapter"
    base = Path(trained.settings["base_model"])
    soup = adapters.attach(load_folder(base).model, tmp_path / "soup")
    if trained.settings.get("adapter") == "prompt_tuning":
        prompts = [weights(folder)["prompt_embeddings"].double() * weight for folder, weight in parts]
        assert_close(weights(tmp_path / "soup")["prompt_embeddings"], sum(prompts, torch.zeros(())).float())
        answer(soup)
        return
    expected = load_folder(base).model
    dense = {name: torch.zeros(value.shape, dtype=torch.float64) for name, value in expected.state_dict().items()}
    for folder, weight in parts:
        for name, value in load_folder(resolve(str(folder), tmp_path / "cache")).model.state_dict().items():
            dense[name] += weight * value.double()
    expected.load_state_dict({name: value.float() for name, value in dense.items()})
    assert_close(answer(soup), answer(expected))
    assert (answer(soup) - answer(load_folder(base).model)).abs().max() > 1e-3


def test_sizes_are_those_of_a_written_checkpoint(trained: Trained) -> None:
    typed = parse_pipeline(trained.settings)
    assert isinstance(typed, FineTuneConfig)
    shape, folder = read_shape(trained.settings["base_model"]), trained.folder / "checkpoint-20"
    told, whole = checkpoint_bytes(typed, shape)
    assert told == sum(value.nbytes for value in weights(folder).values())
    moments = [value for name, value in load_file(folder / "optimizer.safetensors").items() if "exp_avg" in name]
    assert whole - told == sum(value.nbytes for value in moments)
    assert SizesOf.of(typed, shape).parameters == trained.reports[-1].telemetry["train/trainable_parameters"]


def test_what_is_kept_for_the_backward_pass_is_as_estimated(trained: Trained, place: Path) -> None:
    typed = parse_pipeline(trained.settings)
    assert isinstance(typed, FineTuneConfig)
    loaded = load_folder(place / "model")
    loaded.model.requires_grad_(False)
    model = adapters.inject(loaded.model, typed).train()
    own = {tensor.data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    kept: dict[int, tuple[int, torch.Tensor]] = {}

    def see(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    ids = torch.arange(800).reshape(4, 200) % 200
    mask, labels = torch.ones_like(ids), torch.full_like(ids, -100)
    mask[0, -5:], labels[:, -2:] = 0, 1
    with torch.autograd.graph.saved_tensors_hooks(see, lambda tensor: tensor):
        logits = trained_logits(model, ids, mask, labels)[0]
        assert logits.requires_grad
    prompt = typed.num_virtual_tokens if typed.adapter == "prompt_tuning" else 0
    shape = read_shape(str(place / "model"))
    told = _kept(typed, shape, Batch(4, 200 + prompt, 8, True), SizesOf.of(typed, shape), "cpu")
    assert sum(told) == pytest.approx(sum(size for size, _ in kept.values()), rel=0.05)


def test_sizes_of_lokr_follow_its_rank(place: Path) -> None:
    shape = read_shape(str(place / "model"))
    for rank in (1, 2, 3, 4, 8, 64):
        made = typed(place, adapter="lokr", lora_r=rank)
        loaded = load_folder(place / "model")
        loaded.model.requires_grad_(False)
        count = adapters.trainable_parameters(adapters.inject(loaded.model, made))
        assert count == SizesOf.of(made, shape).parameters, rank


def test_pissa_begins_as_pefts_does_and_changes_nothing(place: Path, tmp_path: Path) -> None:
    loaded = load_folder(place / "model")
    base = answer(loaded.model)
    loaded.model.requires_grad_(False)
    model = adapters.inject(loaded.model, typed(place, peft_init_lora_weights="pissa")).eval()
    pissa.fill(model, "0", tmp_path)
    assert_close(answer(model), base)
    dropped = {name: getattr(part, "p", 0.0) for name, part in model.named_modules() if ".lora_dropout." in name}
    assert set(dropped.values()) == {0.0, 0.1}
    assert not any(share for name, share in dropped.items() if name.endswith("start")), "the residual is not dropped"
    theirs = get_peft_model(
        load_folder(place / "model").model,
        LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", init_lora_weights="pissa", task_type="CAUSAL_LM"),
    )
    layers = {name: part for name, part in theirs.named_modules() if hasattr(part, "lora_A")}
    assert len(layers) == 14
    for name, part in layers.items():
        ours = model.get_submodule(name)
        assert_close(ours.get_delta_weight("default"), part.get_delta_weight("default"))
        assert_close(ours.get_delta_weight("start"), -part.get_delta_weight("default"))
    again = adapters.inject(load_folder(place / "model").model, typed(place, peft_init_lora_weights="pissa"))
    pissa.fill(again, "0", tmp_path)
    ours, kept = (get_peft_model_state_dict(one) for one in (model, again))
    assert all(torch.equal(ours[name], kept[name]) for name in ours), "what is kept in the cache must be used"


def test_pissa_of_a_weight_with_fewer_rows_than_the_rank() -> None:
    weight = torch.randn(3, 7)
    for given in (weight, weight.T):
        up, down = pissa.directions(given, 5)
        assert (up.shape, down.shape) == ((given.shape[0], 5), (5, given.shape[1]))
        torch.testing.assert_close(up @ down, given, rtol=1e-5, atol=1e-5)
    up, down = pissa.directions(torch.zeros(4, 4), 2)
    assert not (up @ down).any()
    assert torch.isfinite(up).all()
    assert torch.isfinite(down).all()


@pytest.mark.parametrize(("key", "kind"), [("load_in_4bit", "Linear4bit"), ("load_in_8bit", "Linear8bitLt")])
def test_quantised_weights_are_trained_on_resumed_and_scored(place: Path, tmp_path: Path, key: str, kind: str) -> None:
    pytest.importorskip("bitsandbytes")
    settings, pipeline = config(place, lora_dropout=0.0, **{key: True}), SFTPipeline()
    reports = run(settings, tmp_path / "whole", (STOP, TOTAL), pipeline)
    kept = pipeline._base(settings["base_model"], typed(place, **{key: True}), None, "cpu").model
    assert type(kept.model.layers[0].mlp.up_proj).__name__ == kind
    run(settings, tmp_path / "cut", (STOP, TOTAL), stop=STOP)
    disturb()
    start = str(tmp_path / "cut" / f"checkpoint-{STOP}")
    run(settings, tmp_path / "cut", (TOTAL,), start=start, start_resource=STOP)
    last = tmp_path / "cut" / f"checkpoint-{TOTAL}"
    assert same(tmp_path / "whole" / f"checkpoint-{TOTAL}", last)
    assert {value.dtype for value in weights(last).values()} == {torch.float32}
    job = EvaluationJob(settings, ModelSource(settings["base_model"], str(last)), "tune", ({"type": "loss"},))
    assert pipeline.evaluate(job)[0].value == pytest.approx(reports[-1].scores[0].value, rel=1e-5)
    plain = EvaluationJob(config(place), job.model, "tune", job.evaluators)
    assert pipeline.evaluate(plain)[0].value != pytest.approx(reports[-1].scores[0].value, rel=1e-6)


def test_scoring_leaves_4_bit_weights_as_they_are(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On CPUs with bf16 instructions, and on others as if they had them."""
    modules = pytest.importorskip("bitsandbytes.nn.modules")
    monkeypatch.setattr(modules, "has_avx512bf16", lambda: True)
    quantised = Quantised.of(typed(place, load_in_4bit=True))
    model = load_folder(place / "model", quantised=quantised).model
    before = model.model.layers[0].mlp.up_proj.weight.data.clone()
    with torch.no_grad():
        model(input_ids=torch.tensor([[1, 2, 3]]))
    assert torch.equal(model.model.layers[0].mlp.up_proj.weight.data, before)


def test_without_bitsandbytes_the_message_names_the_setting(place: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"load_in_8bit: needs the package bitsandbytes: pip install"):
        run(config(place, load_in_8bit=True), tmp_path)
