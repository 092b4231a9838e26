"""`parameters:` as written, by the SFT pipeline's keys and by a made-up pipeline with variants."""

from typing import Annotated, Literal

import pytest
from pydantic import Field
from sweep_files import CUSTOM, SFT, load, problems

from pipelines.config import Config
from sweeps.fields import overlay
from sweeps.parameters import parse
from sweeps.space import Axis, Branch, Choice, Group, Interval
from sweeps.yaml_source import read


def space(tmp_path, parameters: str, base: str = SFT):
    return load(tmp_path, base + "budget: {trials: 4}\nparameters:\n" + indented(parameters)).space


def indented(text: str) -> str:
    return "".join(f"  {line}\n" for line in text.strip("\n").splitlines())


def refused(tmp_path, parameters: str, base: str = SFT) -> str:
    found = problems(tmp_path, base + "budget: {trials: 4}\nparameters:\n" + indented(parameters))
    assert len(found) == 1, found
    return next(iter(found.values()))


@pytest.mark.parametrize(
    ("written", "domain"),
    [
        ("lora_r: [8, 16]", Choice((8, 16))),
        ("lora_r: {values: [8, 16]}", Choice((8, 16))),
        ("lora_r: {distribution: categorical, values: [8, 16]}", Choice((8, 16))),
        ("lora_r: {value: 8}", Choice((8,))),
        ("lora_r: {distribution: constant, value: 8}", Choice((8,))),
        ("lora_r: {min: 4, max: 64}", Interval(4, 64, integer=True)),
        ("lora_r: {distribution: uniform, min: 4, max: 64}", Interval(4, 64, integer=True)),
        ("lora_r: {distribution: log_uniform_values, min: 4, max: 64}", Interval(4, 64, log=True, integer=True)),
        ("lora_r: {distribution: q_uniform, min: 8, max: 64, q: 8}", Interval(8, 64, step=8, integer=True)),
        ("lora_r: {min: 8, max: 64, q: 8}", Interval(8, 64, step=8, integer=True)),
        ("learning_rate: {min: 0.1, max: 1}", Interval(0.1, 1.0)),
        ("weight_decay: {min: 0, max: 1}", Interval(0, 1)),
        ("weight_decay: {distribution: int_uniform, min: 0, max: 3}", Interval(0, 3, integer=True)),
        ("learning_rate: {distribution: log_uniform_values, min: 1e-5, max: 1e-3}", Interval(1e-5, 1e-3, log=True)),
        (
            "learning_rate: {distribution: q_log_uniform_values, min: 1e-5, max: 1e-3, q: 1e-5}",
            Interval(1e-5, 1e-3, log=True, step=1e-5),
        ),
        ("lora_target_modules: [[q_proj, v_proj], all-linear]", Choice((["q_proj", "v_proj"], "all-linear"))),
        ("use_rslora: [true, false]", Choice((True, False))),
    ],
)
def test_domains(tmp_path, written, domain):
    (axis,) = space(tmp_path, written).axes
    assert axis == Axis(written.partition(":")[0], written.partition(":")[0], domain)


def test_nested_dotted_and_prefixed_paths_are_one_form(tmp_path):
    base = SFT.replace("tune: {fraction: 0.1}", "tune: {path: data/tune.jsonl, type: prompt_completion}")
    base = base.replace("select: {fraction: 0.1}", "select: {path: data/select.jsonl, type: prompt_completion}")
    forms = [
        "datasets.train.limit: [10, 20]",
        "pipeline.datasets.train.limit: [10, 20]",
        "datasets: {train: {limit: [10, 20]}}",
        "datasets.train: {limit: [10, 20]}",
        "pipeline: {datasets: {train: {limit: [10, 20]}}}",
    ]
    for form in forms:
        assert space(tmp_path, form, base).axes == (
            Axis("datasets.train.limit", "datasets.train.limit", Choice((10, 20))),
        )


def test_together_pairs_values(tmp_path):
    found = space(
        tmp_path, "together:\n  shape:\n  - {lora_r: 8, lora_alpha: 16}\n  - {lora_r: 16, pipeline.lora_alpha: 16}"
    )
    assert found.groups == (Group("shape", ({"lora_r": 8, "lora_alpha": 16}, {"lora_r": 16, "lora_alpha": 16})),)
    assert found.size == 2


def test_a_branch_of_a_plain_key_opens_its_neighbours(tmp_path):
    found = space(tmp_path, "adapter: {choose: {lora: {lora_r: [8, 16]}, none: {}}}")
    assert found.size == 3
    assert found.branches[0].key == "adapter"
    assert [found.replay(choices) for choices in found.grid()] == [
        {"adapter": "lora", "lora_r": 8},
        {"adapter": "lora", "lora_r": 16},
        {"adapter": "none"},
    ]


def test_keyword_arguments_of_a_custom_pipeline_are_free(tmp_path):
    written = "kwargs.depth: {min: 1, max: 4}\nkwargs.model: {choose: {a: {width: [1, 2]}, b: {}}}\nkwargs: {rate: {min: 0.5, max: 1}}"
    found = space(tmp_path, written, CUSTOM)
    assert found.axes == (
        Axis("kwargs.depth", "kwargs.depth", Interval(1, 4, integer=True)),
        Axis("kwargs.rate", "kwargs.rate", Interval(0.5, 1)),
    )
    assert found.branches[0].path == "kwargs.model"
    assert found.branches[0].arms["a"].axes[0] == Axis(
        "kwargs.model.a.kwargs.model.width", "kwargs.model.width", Choice((1, 2))
    )


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("lora_r: 8", "8 is no domain; write [8] for one value"),
        ("lora_r: []", "an empty list"),
        ("lora_r: {}", "is empty"),
        ("lora_r: [8, 8]", "parameters.lora_r[1] (line 15, column 15): 8 stands twice"),
        ("lora_r: [8, sixteen]", "parameters.lora_r[1] (line 15, column 15): 'sixteen' is not a whole number"),
        ("lora_r: [0, 8]", "parameters.lora_r[0] (line 15, column 12): 0 is not at least 1"),
        ("lora_r: {min: 0, max: 8}", "parameters.lora_r.min (line 15, column 17): 0 is not at least 1"),
        ("lora_r: {min: 4.5, max: 8}", "whole numbers, but got 4.5 to 8"),
        ("lora_r: {min: 8, max: 4}", "min 8 is above max 4; swap them"),
        ("lora_r: {min: 8, max: 8}", "write {value: 8}"),
        ("lora_r: {min: 8}", "is missing; a range has min and max"),
        ("lora_r: {min: 8, max: x}", "parameters.lora_r.max (line 15, column 25): 'x' is not a number"),
        ("lora_r: {min: 8, max: 16, values: [1]}", "give one of value, values, or min and max"),
        ("lora_r: {distribution: uniform}", "give one of value, values, or min and max, but got none"),
        ("lora_r: {distribution: uniform, values: [1, 2]}", "uniform goes with min and max, but got values"),
        ("lora_r: {distribution: q_uniform, min: 1, max: 8}", "q_uniform needs q"),
        ("lora_r: {distribution: uniform, min: 1, max: 8, q: 2}", "write distribution: q_uniform, or delete q"),
        ("lora_r: {min: 1, max: 8, q: 0}", "0 is no step"),
        ("lora_r: {min: 1, max: 8, q: 9}", "wider than the range"),
        (
            "lora_r: {distribution: log_uniform, min: 1, max: 2}",
            "log_uniform takes exponents; write 'log_uniform_values'",
        ),
        ("lora_r: {distribution: loguniform, min: 1, max: 2}", "here it is 'log_uniform_values'"),
        ("lora_r: {distribution: unifrom, min: 1, max: 2}", "did you mean 'uniform'?"),
        ("learning_rate: {distribution: log_uniform_values, min: 0, max: 1}", "min must be above 0"),
        ("lora_r: {value: 4, probabilities: [1]}", "values are drawn evenly"),
        ("use_rslora: {min: 0, max: 1}", "the key takes no number; write a list of values"),
        ("lora_target_modules: [q_proj, v_proj]", "write [[q_proj, v_proj]] for the one list [q_proj, v_proj]"),
        ("lora_rank: [8]", "LLaMA-Factory's lora_rank is `lora_r` here"),
        ("lora_dropot: [0.1]", "did you mean 'lora_dropout'?"),
        ("budget: [1]", "only keys of pipeline are swept"),
        ("datasets.trian.limit: [1]", "'trian' is unknown; did you mean 'train'?"),
        ("seed_data: [1, 2]", "is the same in all trials"),
        ("type: [sft]", "is the same in all trials"),
        ("min: [1]", "'min' is reserved"),
        ("lora_r.values: [1]", "'values' is reserved"),
        ("lora_r..x: [1]", "is no path"),
        ("lora_r: {parameters: {x: [1]}}", "'parameters' is unknown"),
        ("datasets: {parameters: {x: [1]}}", "W&B's nesting; put the keys below directly"),
        ("lora_r: [1]\npipeline.lora_r: [2]", "sets 'lora_r' again; the first is on line 15"),
        ("together: [1]", "together takes named groups"),
        ("together: {a: {lora_r: [1]}}", "a group is a list of mappings"),
        ("together: {a: [{lora_r: 1}, {lora_alpha: 2}]}", "every row sets the same keys, but lora_alpha, lora_r"),
        (
            "together: {a: [{lora_r: 1}, {lora_r: 0}]}",
            "parameters.together.a[1].lora_r (line 15, column 40): 0 is not at least 1",
        ),
        ("lora_r: [1]\ntogether: {a: [{lora_r: 1}]}", "sets 'lora_r' again"),
        ("lora_r: {choose: {a: {}}}", "'lora_r' has no variants to choose from"),
        (
            "adapter: {choose: {lora: {}, qlora: {}}}",
            "parameters.adapter.choose.qlora (line 15, column 32): 'qlora' is unknown",
        ),
        ("adapter: {choose: [lora, none]}", "is no choice of arms"),
        ("adapter: {choose: {lora: 1}}", "write {} for an arm without parameters"),
        ("adapter: {choose: {lora: {}}, values: [1]}", "'values' stands beside choose"),
        (
            "adapter: [lora, none]\nlora_r: [8, 16]",
            "lora_r has no effect where adapter is none, so trials would be equal; write adapter: {choose:",
        ),
        (
            "optimizer: [adamw, prodigy]\nlearning_rate: [1.0e-4, 1.0e-3]",
            "learning_rate has no effect where optimizer is prodigy, so trials would be equal; write optimizer: {choose: "
            "{adamw: {learning_rate: [...]}, prodigy: {}}}",
        ),
        ("optimizer: [adamw_torch]", "'adamw_torch' is unknown; here it is 'adamw'"),
        ("max_steps: [10, 20]\nnum_epochs: [1]", "max_steps and num_epochs are both given"),
        ("datasets.tune.fraction: [0.1, 0.2]", "decides what trials are scored on"),
        ("datasets.train.limit: [10, 20]", "changes tune, select as well"),
        (
            "base_model: [./nowhere, some/model]",
            "parameters.base_model[0] (line 15, column 16): './nowhere' is not there",
        ),
    ],
)
def test_mistakes(tmp_path, written, said):
    assert said in refused(tmp_path, written)


def test_ranges_need_steps_on_a_grid(tmp_path):
    found = problems(tmp_path, SFT + "method: grid\nparameters: {learning_rate: {min: 0.1, max: 1}}\n")
    assert "a grid can't walk a continuous range" in found["parameters.learning_rate"]


class BM25(Config):
    type: Literal["bm25"] = "bm25"
    k1: float = Field(default=1.2, ge=0)
    budget: int = 10


class Dense(Config):
    type: Literal["dense"] = "dense"
    model: str = "mini"
    budget: int = 10


class Rag(Config):
    type: Literal["rag"] = "rag"
    retrieve: Annotated[BM25 | Dense, Field(discriminator="type")]


def parsed(text: str):
    document = read(text.encode())
    found = parse(document, document.data, [Rag])
    return found, [str(problem) for problem in document.problems]


def test_a_branch_of_a_section_sets_its_type():
    found, wrong = parsed(
        "retrieve: {choose: {bm25: {k1: [0.9, 1.2]}, dense: {model: [a, b]}}}\nretrieve.budget: [5, 10]"
    )
    assert wrong == []
    (branch,) = found.space.branches
    assert branch == Branch(
        "retrieve",
        {
            "bm25": found.space.branches[0].arms["bm25"],
            "dense": found.space.branches[0].arms["dense"],
        },
    )
    assert branch.key == "retrieve.type"
    assert found.space.size == 2 * 4


def test_another_type_keeps_the_keys_that_it_knows():
    base = {"type": "rag", "retrieve": {"type": "bm25", "k1": 2.0, "budget": 4}}
    assert overlay(base, {"retrieve.type": "dense", "retrieve.model": "x"}, [Rag]) == {
        "type": "rag",
        "retrieve": {"type": "dense", "budget": 4, "model": "x"},
    }
    assert overlay(base, {"retrieve.type": "bm25"}, [Rag]) == base
    assert base["retrieve"]["type"] == "bm25"


def test_arms_may_set_the_same_path_but_nobody_outside_may():
    _, wrong = parsed("retrieve: {choose: {bm25: {budget: [1]}, dense: {budget: [2]}}}")
    assert wrong == []
    _, wrong = parsed("retrieve: {choose: {bm25: {budget: [1]}, dense: {}}}\nretrieve.budget: [2]")
    assert len(wrong) == 1
    assert "sets 'retrieve.budget' again" in wrong[0]
    _, wrong = parsed("retrieve: {choose: {bm25: {}, dense: {}}}\nretrieve.type: [bm25]")
    assert "sets 'retrieve.type' again" in wrong[0]
