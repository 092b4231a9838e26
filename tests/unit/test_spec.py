import subprocess
import sys

import pytest
from pydantic import BaseModel, ValidationError

from evaluators import EVALUATORS
from evaluators.config import EVALUATOR_CONFIGS
from evaluators.field_texts import description
from pipelines import PIPELINES
from pipelines.config import (
    PIPELINE_CONFIGS,
    CustomConfig,
    Datasets,
    RagConfig,
    SFTConfig,
    parse_pipeline,
    total_resource,
)
from sweeps.fields import take_apart, type_names
from sweeps.searchers import SEARCHERS
from sweeps.spec import ASHAConfig, Resources, Seeds, SweepSpec

DATA = {"train": {"path": "t.jsonl", "type": "text"}}


def every_model(model: type[BaseModel], seen: set[type[BaseModel]]) -> set[type[BaseModel]]:
    if model not in seen:
        seen.add(model)
        for info in model.model_fields.values():
            for leaf in take_apart(info.annotation):
                for part in (leaf, *(inner for arg in getattr(leaf, "__args__", ()) for inner in take_apart(arg))):
                    if isinstance(part, type) and issubclass(part, BaseModel):
                        every_model(part, seen)
    return seen


MODELS = sorted(every_model(SweepSpec, set()), key=lambda model: model.__name__)


def test_the_walk_finds_the_models():
    assert {"SweepSpec", "SFTConfig", "CustomConfig", "Fraction", "ASHAConfig", "ExactMatchConfig"} <= {
        m.__name__ for m in MODELS
    }


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_every_field_is_documented_and_every_model_is_frozen_and_closed(model):
    undocumented = [name for name in model.model_fields if name != "type" and not description(model, name)]
    assert undocumented == []
    assert model.model_config["frozen"]
    assert model.model_config["extra"] == "forbid"


def test_tables_and_unions_name_the_same_things():
    assert sorted(EVALUATORS) == sorted(name for model in EVALUATOR_CONFIGS for name in type_names(model))
    assert sorted(PIPELINES) == sorted(name for model in PIPELINE_CONFIGS for name in type_names(model))
    methods = take_apart(SweepSpec.model_fields["method"].annotation)
    assert sorted(SEARCHERS) == sorted(name for model in methods for name in type_names(model))


def sft(**changes):
    return parse_pipeline({"type": "sft", "base_model": "m", "datasets": DATA, "max_steps": 5, **changes})


def test_a_configuration_survives_its_own_dump():
    config = sft(lora_target_modules=["q_proj"], learning_rate=1e-5)
    assert parse_pipeline(config.model_dump(mode="json")) == config


@pytest.mark.parametrize("changes", [{"num_epochs": 1.0}, {"max_steps": None}])
def test_length_is_given_exactly_once(changes):
    with pytest.raises(ValidationError, match="max_steps"):
        sft(**changes)


@pytest.mark.parametrize("fractions", [{"tune": 0.5, "select": 0.5}, {"tune": 0.4, "select": 0.4, "test": 0.4}])
def test_fractions_leave_something_to_train_on(fractions):
    with pytest.raises(ValidationError, match="nothing to train on"):
        Datasets.model_validate({**DATA, **{name: {"fraction": value} for name, value in fractions.items()}})


def no_questions(config: RagConfig) -> int:
    pytest.fail("not needed")


def test_total_resource_counts_steps_as_epochs_of_whole_batches():
    config = sft(max_steps=None, num_epochs=2.5, micro_batch_size=2, gradient_accumulation_steps=3)
    assert total_resource(config, lambda datasets: 20, no_questions) == 10  # 4 steps an epoch
    assert total_resource(sft(), lambda datasets: pytest.fail("not needed"), no_questions) == 5
    assert total_resource(CustomConfig(import_path="m:C", total=7), lambda datasets: 0, no_questions) == 7
    rag = RagConfig.model_validate({"corpus": "c", "questions": "q", "retrieve": {"type": "bm25"}})
    assert total_resource(rag, lambda datasets: pytest.fail("no rows"), lambda config: 30) == 30


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"sample_packing": True, "max_steps": None, "num_epochs": 1.0}, "give max_steps, not epochs"),
        ({"sample_packing": True, "group_by_length": True}, "packed sequences have no padding to save"),
        ({"unfrozen_parameters": ["model.norm"]}, "adapter is lora, .* write adapter: none"),
        ({"adapter": "none", "unfrozen_parameters": []}, "is empty, so nothing would be trained"),
        ({"adapter": "none", "unfrozen_parameters": ["layers[0"]}, "'layers\\[0' is no regular expression"),
        ({"adapter": "none", "unfrozen_parameters": ["model.embed_tokens.weight$[:32000]"]}, "a range of rows"),
    ],
)
def test_settings_of_training_that_contradict_each_other(changes, told):
    with pytest.raises(ValidationError, match=told):
        sft(**changes)


def test_moot_keys_are_those_that_were_given():
    assert sft(adapter="none", use_dora=True).moot() == {"use_dora": "adapter is none"}
    assert sft(group_by_length=True, micro_batch_size=1).moot() == {"group_by_length": "micro_batch_size is 1"}
    assert sft(group_by_length=True).moot() == {}
    assert sft(adapter="none").moot() == {}
    assert sft(adapter="none", lora_r=8).moot() == {"lora_r": "adapter is none"}
    assert "warmup_ratio" in sft(lr_scheduler="constant", warmup_ratio=0.1).moot()
    assert sft(lora_r=8, warmup_ratio=0.1).moot() == {}
    assert sft(optimizer="prodigy", learning_rate=1e-3).moot() == {"learning_rate": "optimizer is prodigy"}
    assert sft(optimizer="adafactor", adam_beta1=0.5).moot() == {"adam_beta1": "optimizer is adafactor"}
    assert sft(prodigy_d_coef=2.0).moot() == {"prodigy_d_coef": "optimizer is adamw"}
    free = {"optimizer": "schedule_free_adamw", "lr_scheduler": "constant", "warmup_ratio": 0.1}
    assert sft(**free).moot() == {"lr_scheduler": "optimizer is schedule_free_adamw"}


def test_schedule_free_needs_momentum():
    with pytest.raises(ValidationError, match="schedule_free_adamw needs a beta1 above 0"):
        sft(optimizer="schedule_free_adamw", adam_beta1=0.0)


@pytest.mark.parametrize(
    ("total", "milestones"), [(27, (3, 9, 27)), (30, (3, 9, 27, 30)), (3, (3,)), (2, (2,)), (81, (3, 9, 27, 81))]
)
def test_rungs_grow_by_eta_and_end_at_the_total(total, milestones):
    assert ASHAConfig(min=3).milestones(total) == milestones


@pytest.mark.parametrize("seeds", [{"tune": [1, 1]}, {"tune": [1], "test": [1]}, {"tune": []}, {"tune": [-1]}])
def test_seeds_are_different_and_disjoint(seeds):
    with pytest.raises(ValidationError):
        Seeds.model_validate(seeds)


def test_gpus_are_a_share_or_whole():
    assert Resources(gpus=0.25).gpus == 0.25
    with pytest.raises(ValidationError):
        Resources(gpus=1.5)


def test_non_finite_numbers_are_refused():
    with pytest.raises(ValidationError):
        sft(learning_rate=float("inf"))


def test_reading_a_sweep_imports_nothing_heavy(tmp_path):
    from sweep_files import SFT, folder_with_data

    folder_with_data(tmp_path)
    body = (
        SFT
        + "parameters: {learning_rate: {distribution: log_uniform_values, min: 1e-5, max: 1e-3}}\nmethod: tpe\nbudget: {trials: 4}\n"
    )
    (tmp_path / "sweep.yaml").write_text(body)
    code = (
        "import sys; from sweeps.describe import describe; from sweeps.load import load_file\n"
        "describe(load_file(sys.argv[1]))\n"
        "heavy = {'torch', 'ray', 'transformers', 'optuna', 'scipy', 'numpy', 'datasets', 'peft'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "sweep.yaml")], check=True, timeout=60)


def test_sft_config_is_the_sft_pipeline():
    assert isinstance(sft(), SFTConfig)
