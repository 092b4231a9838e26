"""The door: a file comes in whole, or every mistake comes back with its place, what is legal and the mend."""

import json
import os
from pathlib import Path

import pytest
from sweep_files import CUSTOM, SFT, folder_with_data, load, problems

from sweeps.data import check_data
from sweeps.describe import describe
from sweeps.load import from_record, load_file, load_resolved
from sweeps.problems import SpecError
from sweeps.spec import SweepSpec

FULL = (
    SFT
    + """\
storage: runs
parameters:
  learning_rate: {distribution: log_uniform_values, min: 1e-5, max: 1.0e-3}
  adapter: {choose: {lora: {lora_r: [8, 16]}, none: {}}}
method: {type: tpe, seed: 3}
budget: {trials: 12, hours: 6}
early_terminate: {type: asha, min: 3}
seeds: {tune: [0], test: [100, 101]}
keep: {best: 4}
evaluate: [perplexity, {type: exact_match, max_new_tokens: 8, when: final}]
soup: {method: greedy, top: 4}
env: {HF_TOKEN: "${HF_TOKEN}", OMP_NUM_THREADS: "2"}
baseline: {learning_rate: 1e-4}
"""
)


def only(found: dict[str, str]) -> str:
    assert len(found) == 1, found
    return next(iter(found.values()))


def test_a_whole_file(tmp_path):
    loaded = load(tmp_path, FULL)
    assert (loaded.metric, loaded.direction) == ("tune/loss", "minimize")
    assert loaded.milestones == (3, 9, 27)
    assert (loaded.total, loaded.finalists, loaded.trials, loaded.warnings) == (27, 4, 12, ())
    assert loaded.spec.storage == str(tmp_path / "runs")
    assert loaded.paths.root == tmp_path / "runs" / "demo"
    assert loaded.space.paths == ("learning_rate", "adapter", "lora_r")


def test_resolve_fills_in_defaults_and_makes_paths_absolute(tmp_path):
    loaded = load(tmp_path, FULL)
    config = loaded.resolve({"learning_rate": 3e-4, "adapter": "lora", "lora_r": 8})
    assert config["learning_rate"] == 3e-4
    assert config["lora_r"] == 8
    assert config["weight_decay"] == 0.0
    assert config["datasets"]["train"]["path"] == str(tmp_path / "data" / "train.jsonl")
    assert config["base_model"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert set(config) == set(type(loaded.spec.pipeline).model_fields)
    assert json.loads(json.dumps(config)) == config
    assert loaded.total_of(config) == 27
    assert loaded.milestones_of(config) == (3, 9, 27)
    baseline = loaded.resolve_baseline()
    assert baseline is not None
    assert baseline["learning_rate"] == 1e-4


def test_a_record_loads_back_and_is_a_sweep_file(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_" + "s" * 30)
    loaded = load(tmp_path, FULL)
    text = json.dumps(loaded.record())
    assert "hf_sss" not in text
    file = tmp_path / "elsewhere" / "sweep.resolved.json"
    file.parent.mkdir()
    file.write_text(text)
    assert load_resolved(file) == loaded
    again = load_file(file, ["name=again"])
    assert again.spec.name == "again"
    assert again.record() == {**loaded.record(), "spec": {**loaded.record()["spec"], "name": "again"}}
    parameters = {"learning_rate": 3e-4, "adapter": "none"}
    assert from_record(loaded.record()).resolve(parameters) == loaded.resolve(parameters) == again.resolve(parameters)


@pytest.mark.parametrize("text", ["", "{}", "[1]", "nonsense", '{"format": 9}', '{"format": 1, "spec": {}}'])
def test_a_broken_record_is_one_message(tmp_path, text):
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(SpecError, match="is not a resolved sweep"):
        load_resolved(tmp_path / "r.json")


def test_bare_words_are_types(tmp_path):
    tail = "method: tpe\nearly_terminate: none\nevaluate: [perplexity]\nsoup: uniform\nbudget: {trials: 5}\nparameters: {lora_r: [4, 8, 16, 32, 64]}\n"
    spec = load(tmp_path, SFT + tail).spec
    assert (spec.method.type, spec.early_terminate.type, spec.metric.name) == ("tpe", "none", "loss")
    assert spec.evaluate[0].type == "perplexity"
    assert spec.soup is not None
    assert spec.soup.method == "uniform"


def test_all_mistakes_come_at_once_in_the_files_order(tmp_path):
    text = """\
name: my sweep
pipeline:
  type: sft
  model_name_or_path: foo/bar
  datasets:
    train: {path: data/trian.jsonl, type: alpaca}
    tune: {fracton: 0.1}
  per_device_train_batch_size: 4
  learning_rate: fast
  max_steps: 1e2
  use_rslora: yes
  do_train: true
parameters:
  lora_r: [8, 0]
method: bayes
metric: {name: eval_loss, goal: minimise}
run_cap: 20
early_terminate: {type: hyperband}
seeds: {tune: [1], test: [1]}
"""
    with pytest.raises(SpecError) as caught:
        load(tmp_path, text)
    lines = str(caught.value).splitlines()
    assert lines[0] == "sweep.yaml: 16 mistakes; nothing was written"
    expected = [
        "name (line 1, column 7): 'my sweep' is not a name",
        "pipeline.model_name_or_path (line 4, column 3): 'model_name_or_path' is unknown; LLaMA-Factory's model_name_or_path is `base_model` here",
        "pipeline.datasets.train.path (line 6, column 19): 'data/trian.jsonl' is not there",
        "pipeline.datasets.train.type (line 6, column 43): 'alpaca' is unknown;",
        "pipeline.datasets.tune.fracton (line 7, column 12): 'fracton' is unknown; did you mean 'fraction'?",
        "pipeline.per_device_train_batch_size (line 8, column 3): 'per_device_train_batch_size' is unknown; Hugging Face's",
        "pipeline.learning_rate (line 9, column 18): 'fast' is not a number",
        "pipeline.max_steps (line 10, column 14): 100.0 is not a whole number; write 100",
        "pipeline.use_rslora (line 11, column 15): 'yes' is not true or false; write true",
        "pipeline.do_train (line 12, column 3): 'do_train' is unknown; nothing turns training off",
        "parameters.lora_r[1] (line 14, column 15): 0 is not at least 1",
        "method.type (line 15, column 9): 'bayes' is unknown; W&B's bayes is 'gp' here, or 'tpe' (cmaes, gp, grid, nsga2, random, tpe)",
        "metric.goal (line 16, column 33): 'minimise' is unknown; did you mean 'minimize'? (maximize, minimize)",
        "run_cap (line 17, column 1): 'run_cap' is unknown; W&B's run_cap is `budget.trials` here",
        "early_terminate.type (line 18, column 25): 'hyperband' is unknown; W&B's hyperband is 'asha' here",
        "seeds.test (line 19, column 26): seeds [1] stand under tune as well",
    ]
    assert len(lines) == len(expected) + 1
    for line, start in zip(lines[1:], expected, strict=True):
        assert line.startswith("  " + start), line


def test_an_unknown_type_is_located_at_its_value_and_the_rest_is_still_read(tmp_path):
    found = problems(tmp_path, SFT.replace("type: sft", "type: sftt").replace("max_steps: 27", "max_stepz: 27"))
    assert (
        "(line 3, column 9): 'sftt' is unknown; did you mean 'sft'? (custom, distill, dpo, rag, retrain_pruned, sft)"
        in found["pipeline.type"]
    )
    assert "did you mean 'max_steps'?" in found["pipeline.max_stepz"]


@pytest.mark.parametrize(
    ("tail", "place", "said"),
    [
        ("metric: test/loss", "metric.name", "opened once, by the final step; the sweep decides on tune: write 'loss'"),
        ("metric: select/loss", "metric.name", "chooses soups"),
        ("metric: los", "metric.name", "did you mean 'loss'?"),
        ("metric: eval/loss", "metric.name", "W&B's eval/loss is 'loss' here"),
        ("metric: {name: loss, goal: maximize}", "metric.goal", "contradicts loss, which is to minimize"),
        ("metric: cost/seconds", "metric.name", "is telemetry; say which way is better"),
        ("metric: [loss, loss]", "metric[1].name", "'tune/loss' stands twice"),
        ("metric: []", "metric", "0 metrics; give 1 to 5"),
        ("metric: [loss, {nam: x}]", "metric[1].nam", "'nam' is unknown; did you mean 'name'? (goal, name)"),
        ("metric: [loss, cost/seconds]", "metric[1].name", "'cost/seconds' is telemetry; say which way is better"),
        ("metric: [loss, test/loss]", "metric[1].name", "test/ is opened once, by the final step"),
        ("metric: [loss, select/loss]", "metric[1].name", "select/ chooses soups"),
        (
            "metric: [loss, {name: exact_match, goal: minimize}]",
            "metric[1].goal",
            "'minimize' contradicts exact_match, which is to maximize; delete goal",
        ),
        (
            "metric: [loss, perplexity]\nmethod: cmaes\nparameters: {lora_r: {min: 1, max: 9}}\nbudget: {trials: 3}",
            "method.type",
            "'cmaes' takes one metric, but the file has 2; name one, or use one of gp, grid, nsga2, random, tpe",
        ),
        (
            "metric: [loss, exact_match]\nevaluate: [{type: exact_match, when: end}]",
            "evaluate[0].when",
            "the metric's evaluator runs at every rung",
        ),
        (
            "metric: perplexity\nevaluate: [{type: perplexity, when: end}]",
            "evaluate[0].when",
            "runs at every rung; delete when",
        ),
        ("evaluate: [perplexity, perplexity]", "evaluate[1]", "'perplexity' stands twice"),
        ("evaluate: perplexity", "evaluate", "'perplexity' is not a list; write [perplexity]"),
        ("evaluate: [ppl]", "evaluate[0].type", "here it is 'perplexity'"),
        (
            "evaluate: [{limit: 3}]",
            "evaluate[0].type",
            "is missing; give one of answer_correctness, answer_relevancy, answer_similarity",
        ),
        (
            "parameters: {learning_rate: {min: 0.1, max: 1}}",
            "parameters",
            "so the sweep has no end; write budget: {trials: 24}",
        ),
        ("early_terminate: {type: asha, min: 27}", "early_terminate.min", "must come before the end of a run, 27"),
        (
            "early_terminate: {type: asha, min: 3, max: 81}",
            "early_terminate.max",
            "is not the length of a run, which is 27; delete max",
        ),
        ("early_terminate: asha", "early_terminate.min", "is missing: First rung"),
        (
            "early_terminate: {type: asha, min: 3}\nparameters: {max_steps: [27, 81]}",
            "parameters.max_steps",
            "asha can't compare them",
        ),
        (
            "early_terminate: {type: asha, min: 3, finalists: 3}\nparameters: {lora_r: [1, 2]}",
            "early_terminate.finalists",
            "3 finalists of 2 trials",
        ),
        (
            "early_terminate: {type: asha, min: 3, finalists: 2}\nparameters: {lora_r: [1, 2, 3, 4, 5]}\nsoup: {top: 3}",
            "soup.top",
            "only 2 are sure to be finalists",
        ),
        ("soup: {top: 3}\nparameters: {lora_r: [1, 2]}", "soup.top", "there are only 2"),
        ("soup: {metric: exact}", "soup.metric", "did you mean 'exact_match'?"),
        ("soup: {metric: perplexity, early_stop: {block: 10}}", "soup.early_stop", "give soup.metric: loss"),
        ("soup: {rank: 4, energy: 0.9}", "soup.energy", "each of them decides the rank; delete one"),
        ("soup: {method: greedi}", "soup.method", "did you mean 'greedy'?"),
        ("soup: {method: ties, tie: accept}", "soup.tie", "is unknown"),
        (
            "soup: {top: 4}\nkeep: {best: 2}\nparameters: {lora_r: [1, 2, 3, 4]}",
            "keep.best",
            "fewer than the 4 that the soup needs",
        ),
        ("baseline: {lora_r: 0}", "baseline.lora_r", "0 is not at least 1"),
        ("baseline: {datasets: {train: {lmit: 3}}}", "baseline.datasets.train.lmit", "did you mean 'limit'?"),
        ("resources: {gpus: 2, workers: 3}", "resources.gpus", "need a GPU each"),
        ("resources: {cpus: lots}", "resources.cpus", "'lots' is not a number or 'auto'"),
        ("storage: ftp://host/x", "storage", "is no storage; give a folder, or s3://bucket/prefix"),
        ("learning_rate: 3", "learning_rate", "it belongs under pipeline:"),
        ("budget:", "budget", "is empty; give a mapping (key: value), or delete the line"),
        ("env: {HF_TOKEN: abc}", "env.HF_TOKEN", "write HF_TOKEN: ${HF_TOKEN}"),
        ("env: {X: hf_abcdefghijklmnopqrstuvwx}", "env.X", "a secret in plain text"),
        ("env: {X: 'Bearer ${Y}'}", "env.X", "write ${NAME} alone"),
        ("env: {X: 1}", "env.X", '1 is not text; put it in quotes: "1"'),
    ],
)
def test_rules_between_sections(tmp_path, tail, place, said):
    body = SFT.replace("metric: loss\n", "") if tail.startswith("metric") else SFT
    found = problems(tmp_path, body + tail + "\n")
    assert list(found) == [place]
    assert said in found[place]


def test_a_soup_needs_rows_to_choose_on(tmp_path):
    text = SFT.replace("    select: {fraction: 0.1}\n", "") + "soup: {top: 2}\nparameters: {lora_r: [1, 2]}\n"
    assert "write pipeline.datasets.select: {fraction: 0.05}" in problems(tmp_path, text)["soup"]


def test_the_switch_of_tokenizers_is_no_secret(tmp_path):
    assert load(tmp_path, SFT + 'env: {TOKENIZERS_PARALLELISM: "false"}\n').spec.env == {
        "TOKENIZERS_PARALLELISM": "false"
    }


def test_a_secret_is_never_printed(tmp_path):
    secret = "hf_" + "abcdefghij" * 3
    with pytest.raises(SpecError) as caught:
        load(tmp_path, SFT + f"env: {{A: {secret}}}\nbaseline: {{base_model: {secret}}}\n")
    assert secret not in str(caught.value)
    assert len(caught.value.problems) == 2


@pytest.mark.parametrize(
    ("base_model", "said"),
    [
        ("./nowhere", "'./nowhere' is not there"),
        ("a/b/c", "'a/b/c' is not there"),
        ("model.gguf", "'model.gguf' is not there"),
        ("two words", "is neither a hub id (OWNER/NAME) nor a path"),
        (
            "package://no_such_package/x",
            "the package 'no_such_package' is not installed; pip install --no-deps no-such-package",
        ),
        ("package://pydantic/none", "the package 'pydantic' has no 'none'"),
        ("package://pydantic", "is not package://MODULE/PATH"),
        ("https://example.org/model", "is no model"),
        ("data/train.jsonl", "is a file, but no GGUF file"),
        ("sweep://nowhere/soup", "there is no sweep 'nowhere'"),
        ("sweep://nowhere", "is not sweep://NAME/best"),
    ],
)
def test_base_models_are_looked_for(tmp_path, base_model, said):
    text = SFT.replace("HuggingFaceTB/SmolLM2-135M-Instruct", f"'{base_model}'")
    assert said in only(problems(tmp_path, text))


def test_a_gguf_file_is_refused_at_the_door_where_nothing_can_read_it(tmp_path, monkeypatch):
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    text = SFT.replace("HuggingFaceTB/SmolLM2-135M-Instruct", "./model.gguf")
    load(tmp_path, text)
    monkeypatch.setattr("sweeps.local.importlib.util.find_spec", lambda name: None)
    assert "pip install --no-deps gguf" in only(problems(tmp_path, text))


def test_a_local_model_is_made_absolute_and_a_package_is_not_imported(tmp_path):
    (tmp_path / "model").mkdir()
    loaded = load(tmp_path, SFT.replace("HuggingFaceTB/SmolLM2-135M-Instruct", "model"))
    assert loaded.resolve({})["base_model"] == str(tmp_path / "model")
    text = SFT.replace("HuggingFaceTB/SmolLM2-135M-Instruct", "package://pytest/__init__.py")
    assert load(tmp_path, text).resolve({})["base_model"] == "package://pytest/__init__.py"


def test_the_module_of_a_custom_pipeline_is_looked_for_beside_the_file(tmp_path):
    text = CUSTOM.replace("json:Pipeline", "mine:Pipeline")
    assert "there is no module 'mine'" in only(problems(tmp_path, text))
    (tmp_path / "mine.py").write_text("raise SystemExit('never imported')\n")
    assert load(tmp_path, text).total == 27


def test_storage_is_relative_to_the_file_that_names_it_else_to_here(tmp_path, monkeypatch):
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    assert load(tmp_path, SFT + "storage: ./runs\n").spec.storage == str(tmp_path / "runs")
    assert load(tmp_path, SFT).spec.storage == str(here / "stockpot-runs")
    assert load(tmp_path, SFT + "storage: ./runs\n", ("storage=./other",)).spec.storage == str(here / "other")


def test_set_overrides_the_file(tmp_path):
    sets = ("max_steps=9", "name=other", "budget.trials=3", "metric=perplexity", "method.seed=5", "pipeline.lora_r=4")
    loaded = load(tmp_path, SFT + "method: tpe\nparameters: {weight_decay: {min: 0, max: 1}}\n", sets)
    assert (loaded.total, loaded.spec.name, loaded.trials, loaded.metric) == (9, "other", 3, "tune/perplexity")
    assert loaded.spec.method.seed == 5
    assert loaded.resolve({"weight_decay": 0.5})["lora_r"] == 4


def test_set_reaches_parameters_and_lists_and_removes(tmp_path):
    text = SFT + "parameters: {lora_r: [8, 16]}\nevaluate: [perplexity]\nsoup: {top: 2}\n"
    sets = ("parameters.lora_r=[4]", "parameters.datasets.train.group_by=[prompt]", "evaluate.0.limit=7", "soup=null")
    text = text.replace("{fraction: 0.1}", "{path: data/tune.jsonl, type: prompt_completion}", 1)
    text = text.replace("    select: {fraction: 0.1}\n", "")
    loaded = load(tmp_path, text, sets)
    assert loaded.space.paths == ("lora_r", "datasets.train.group_by")
    assert loaded.spec.evaluate[0].limit == 7
    assert loaded.spec.soup is None


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("max_steps", "--set max_steps: is not KEY=VALUE"),
        ("=3", "is not KEY=VALUE"),
        ("budget.trails=3", "budget.trails (--set budget.trails=3): 'trails' is unknown; did you mean 'trials'?"),
        ("max_steps=ten", "pipeline.max_steps (--set max_steps=ten): 'ten' is not a whole number"),
        (
            "lora_dropot=1",
            "pipeline.lora_dropot (--set lora_dropot=1): 'lora_dropot' is unknown; did you mean 'lora_dropout'?",
        ),
        ("name.x=1", "leads into a value that has no keys below it"),
        ("metric=[", "a '[' or '{' is not closed"),
        ("lora_r=4", "is swept, so that this value would never be used; write --set parameters.lora_r=[VALUE]"),
        ("parameters.lora_r=4", "parameters.lora_r (--set parameters.lora_r=4): 4 is no domain; write [4]"),
    ],
)
def test_mistakes_of_set_name_the_argument(tmp_path, argument, said):
    assert said in only(problems(tmp_path, SFT + "parameters: {lora_r: [8]}\n", (argument,)))


def test_telemetry_and_free_metrics_need_a_goal(tmp_path):
    body = SFT.replace("metric: loss", "metric: {name: cost/seconds, goal: minimize}")
    assert load(tmp_path, body).metric == "cost/seconds"
    free = CUSTOM.replace(", metrics: {score: maximize}", "")
    assert "name it under pipeline.metrics" in only(problems(tmp_path, free))
    loaded = load(tmp_path, free.replace("metric: score", "metric: {name: score, goal: maximize}"))
    assert (loaded.metric, loaded.direction) == ("tune/score", "maximize")


def test_the_metrics_evaluator_is_implied_at_rungs(tmp_path):
    table = load(tmp_path, FULL).timetable
    assert [entry["type"] for entry in table.rung] == ["loss"]
    assert [entry["type"] for entry in table.end] == ["perplexity"]
    assert [entry["type"] for entry in table.final] == ["loss", "perplexity", "exact_match"]
    assert [entry["type"] for entry in table.soup] == ["loss"]
    own = load(tmp_path, FULL.replace("metric: loss", "metric: exact_match").replace(", when: final", "")).timetable
    assert own.rung[0] == {
        "type": "exact_match",
        "max_new_tokens": 8,
        "normalize": False,
        "answer_regex": None,
        "when": None,
        "limit": None,
    }


def test_epochs_are_counted_in_rows(tmp_path):
    text = SFT.replace("max_steps: 27", "num_epochs: 2")
    loaded = load(tmp_path, text)
    rows = loaded.total  # micro batch 2 and two epochs: as many steps as rows
    assert 60 <= rows <= 95
    asha = text + "early_terminate: {type: asha, min: 3}\nparameters: {micro_batch_size: [1, 4]}\n"
    assert "asha can't compare them; give max_steps" in only(problems(tmp_path, asha))
    free = load(tmp_path, text + "parameters: {micro_batch_size: [1, 4]}\n")
    assert free.total == 2 * rows
    slow, quick = (free.resolve({"micro_batch_size": size}) for size in (1, 4))
    assert free.milestones_of(slow) == (2 * rows,)
    assert free.milestones_of(quick) == (2 * -(-rows // 4),)


def test_rows_that_cannot_be_read_are_a_mistake_of_the_file(tmp_path):
    folder_with_data(tmp_path)
    (tmp_path / "data" / "bad.jsonl").write_text('{"prompt": "x"}\n')
    text = SFT.replace("max_steps: 27", "num_epochs: 2").replace("data/train", "data/bad")
    message = only(problems(tmp_path, text))
    assert "bad.jsonl, line 1" in message
    with pytest.raises(SpecError, match=r"bad\.jsonl, line 1"):
        check_data(load(tmp_path, SFT.replace("data/train", "data/bad")))


def test_code_that_comes_with_a_model_is_told(tmp_path):
    assert not any("trust_remote_code" in text for text in load(tmp_path, SFT).warnings)
    trusting = SFT + "parameters: {trust_remote_code: [false, true]}\n"
    told = [text for text in load(tmp_path, trusting).warnings if text.startswith("trust_remote_code")]
    assert len(told) == 1
    assert "will run here, as you" in told[0]


def test_check_data_adds_the_warnings_of_the_splits(tmp_path):
    loaded = check_data(load(tmp_path, SFT))
    assert any("tune" in warning for warning in loaded.warnings)


def test_warnings(tmp_path):
    assert (
        "soup.top is 4, but only 2 of 4"
        in load(
            tmp_path,
            SFT + "parameters: {lora_r: [1, 2, 3, 4]}\nsoup: {top: 4}\nearly_terminate: {type: asha, min: 3}\n",
        ).warnings[0]
    )
    assert (
        "only 2 configurations"
        in load(tmp_path, SFT + "parameters: {lora_r: [1, 2]}\nbudget: {trials: 9}\n").warnings[0]
    )
    swept = SFT + "parameters: {precision: [fp32, fp16]}\nresources: {gpus: %s}\n"
    assert "precision: fp16 is for GPUs" in load(tmp_path, swept % 0).warnings[0]
    assert load(tmp_path, swept % 1).warnings == ()
    assert "sequence_len is swept" in load(tmp_path, SFT + "parameters: {sequence_len: [64, 128]}\n").warnings[0]
    assert (
        "pipeline.lora_r has no effect"
        in load(tmp_path, SFT.replace("max_steps", "adapter: none\n  lora_r: 8\n  max_steps")).warnings[0]
    )


@pytest.mark.parametrize(
    ("tail", "trials"),
    [
        ("", 1),
        ("parameters: {lora_r: [1, 2, 3]}", 3),
        ("parameters: {lora_r: [1, 2, 3]}\nbudget: {trials: 2}", 2),
        ("parameters: {lora_r: [1, 2, 3]}\nbudget: {hours: 2}", None),
        ("parameters: {lora_r: [1, 2, 3]}\nbudget: {hours: 2}\nmethod: grid", 3),
        ("parameters: {lora_r: [1, 2, 3]}\nbudget: {trials: 9}\nmethod: grid", 3),
        ("parameters: {weight_decay: {min: 0, max: 1}}\nbudget: {hours: 1}", None),
    ],
)
def test_how_many_trials(tmp_path, tail, trials):
    assert load(tmp_path, SFT + tail + "\n").trials == trials


def test_describe_says_what_would_run(tmp_path):
    told = describe(load(tmp_path, FULL))
    assert told["rungs"] == [{"resource": 3, "runs": 12}, {"resource": 9, "runs": 4}, {"resource": 27, "runs": 4}]
    assert told["resource"] == 12 * 3 + 4 * 6 + 4 * 18
    assert told["parameters"] == 3
    assert json.loads(json.dumps(told)) == told
    assert (
        describe(load(tmp_path, SFT + "parameters: {weight_decay: {min: 0, max: 1}}\nbudget: {hours: 1}\n"))["rungs"]
        is None
    )


def test_cross_field_rules_see_every_configuration_of_a_grid(tmp_path):
    text = (
        SFT.replace("  max_steps: 27\n", "")
        + "parameters:\n  together:\n    length:\n    - {max_steps: 3, num_epochs: null}\n    - {max_steps: 3, num_epochs: 1}\n"
    )
    message = only(problems(tmp_path, text))
    assert "max_steps and num_epochs are both given" in message
    assert "with max_steps: 3, num_epochs: 1" in message


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty; a sweep file is a mapping"),
        (b"- a", "is no sweep; a sweep file is a mapping"),
        (b"name: x\n\tpipeline: y", "line 2, column 1: a tab"),
    ],
)
def test_files_that_are_no_mapping(tmp_path, content, said):
    (tmp_path / "s.yaml").write_bytes(content)
    with pytest.raises(SpecError) as caught:
        load_file(tmp_path / "s.yaml")
    assert said in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path / "s.yaml"))


def test_files_that_are_not_there(tmp_path):
    with pytest.raises(SpecError, match="can't be read: No such file"):
        load_file(tmp_path / "none.yaml")
    with pytest.raises(SpecError, match="is a folder"):
        load_file(tmp_path)


def test_relative_paths_do_not_depend_on_where_the_command_runs(tmp_path, monkeypatch):
    folder_with_data(tmp_path)
    (tmp_path / "s.yaml").write_text(SFT)
    monkeypatch.chdir(tmp_path.parent)
    relative = load_file(Path(os.path.relpath(tmp_path / "s.yaml")))
    assert relative.folder == tmp_path
    assert relative.resolve({}) == load_file(tmp_path / "s.yaml").resolve({})


def test_every_section_of_the_spec_may_be_written(tmp_path):
    loaded = load(tmp_path, FULL)
    dumped = loaded.spec.model_dump(mode="json")
    assert set(dumped) == set(SweepSpec.model_fields)
