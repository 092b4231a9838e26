"""Answers: prompts, context cut by the generator's own tokens, both generators behind one contract, and no torch in trials."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from fake_endpoint import FakeEndpoint
from tiny import save_model

from pipelines import calls as calls_module
from pipelines.calls import Answers, Calls, kind_of
from pipelines.chat import pack
from pipelines.hosts import LocalHost
from pipelines.local_lm import LocalGenerator as LocalKind
from pipelines.memo import Cost, LocalMemo, Unanswered
from pipelines.rag import GENERATORS
from pipelines.rag.generate import Generator, build_generator, fill, first_tokens, read_template, spec_of, tokenizer_of
from pipelines.rag.models import EndpointGenerator, LocalGenerator, NoGenerator
from pipelines.stage import Devices, Services, UserError

ASKED = [("Who?", ["It was Ann.", "Or Bob."]), ("Where?", ["In the garden."]), ("When?", [])]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("generators") / "tiny")


@pytest.fixture
def memo(tmp_path: Path) -> Iterator[LocalMemo]:
    with LocalMemo(tmp_path / "memo") as opened:
        yield opened


@pytest.fixture(scope="module")
def host() -> Iterator[LocalHost]:
    made = LocalHost(gather_seconds=0.0)
    yield made
    made.close()


KINDS = ("local", "openai")
"""`generate.type` of all that answer."""


@pytest.fixture(params=KINDS)
def configure(request: pytest.FixtureRequest, model: Path) -> Iterator[Callable[..., Any]]:
    """Makes a generator's configuration: a third kind is one more name in `KINDS` and one more branch."""
    if request.param == "local":
        yield lambda **more: LocalGenerator(base_model=str(model), max_new_tokens=6, **more)
        return
    with FakeEndpoint(lambda body: f"{body['messages'][-1]['content'][-9:]} {body.get('seed')}").serving() as server:
        yield lambda **more: EndpointGenerator(
            base_url=server.address, model="fake", max_new_tokens=6, retries=0, **more
        )


def test_every_generator_is_held_to_the_contract() -> None:
    assert {*KINDS, "none"} == set(GENERATORS)


class TestContract:
    """What holds for every generator."""

    def test_an_answer_a_question_in_order(self, configure: Any, host: LocalHost) -> None:
        generator = build_generator(configure(), Calls(host, None, "me"))
        assert generator is not None
        together = generator.answer(ASKED)
        assert together == [generator.answer([one])[0] for one in ASKED]
        assert all(isinstance(text, str) for text in together)
        assert generator.answer([]) == []

    def test_each_prompt_is_asked_once(self, configure: Any, host: LocalHost, memo: LocalMemo) -> None:
        calls = Calls(host, memo, "me")
        first = Generator(configure(), calls).answer([*ASKED, ASKED[0]])
        assert first[0] == first[3]
        again = Calls(host, memo, "other")
        assert Generator(configure(), again).answer(ASKED) == first[:3]
        assert (again.usage["generate"].computed, again.usage["generate"].calls) == (0, 3)
        assert again.usage["generate"].spent.tokens > 0

    @pytest.mark.parametrize(
        "change",
        [{"prompt": "{context} {question}!"}, {"system": "Be brief."}, {"temperature": 0.5}, {"stop": ("x",)}],
    )
    def test_what_changes_answers_is_in_the_key(
        self, configure: Any, host: LocalHost, memo: LocalMemo, change: dict[str, Any]
    ) -> None:
        calls = Calls(host, memo, "me")
        for config in (configure(), configure(**change)):
            Generator(config, calls).answer(ASKED[:1])
        assert calls.usage["generate"].computed == 2

    def test_the_seed_counts_for_drawn_answers_alone(self, configure: Any, host: LocalHost, memo: LocalMemo) -> None:
        for temperature, computed in ((0.0, 1), (0.7, 3)):
            calls = Calls(host, memo, "me")
            for seed, run in ((0, 0), (0, 1), (1, 0), (2, 0)):
                Generator(configure(temperature=temperature, seed=seed), calls, run).answer(ASKED[:1])
            assert calls.usage["generate"].computed == computed

    def test_equal_prompts_of_different_contexts_are_one_question(
        self, configure: Any, host: LocalHost, memo: LocalMemo, model: Path
    ) -> None:
        calls = Calls(host, memo, "me")
        more = {} if "base_model" in configure().model_dump() else {"tokenizer": str(model)}
        generator = Generator(configure(context_tokens=4, **more), calls)
        assert len(set(generator.answer([("Q", ["abcdef", "x"]), ("Q", ["abcdef"]), ("Q", ["abcd"])]))) == 1
        assert calls.usage["generate"].computed == 1


def test_without_a_generator_there_is_none(host: LocalHost) -> None:
    assert build_generator(NoGenerator(), Calls(host, None, "me")) is None


def test_the_template_is_filled_once() -> None:
    template = "{context}\n{other} Q: {question}"
    assert fill(template, "what is {context}?", "a {question} b") == "a {question} b\n{other} Q: what is {context}?"


def test_a_prompt_may_be_a_file(tmp_path: Path) -> None:
    file = tmp_path / "prompt.txt"
    file.write_text("From the file: {context} {question}")
    assert read_template(str(file)) == "From the file: {context} {question}"
    assert read_template("Say {question}.txt") == "Say {question}.txt"
    with pytest.raises(UserError, match=r"generate.prompt: .*gone.txt can't be read"):
        read_template(str(tmp_path / "gone.txt"))


def test_context_tokens_keep_whole_passages_and_cut_the_last(model: Path, host: LocalHost) -> None:
    [file] = Calls(host, None, "me").ask(
        "tokenizer", {"kind": "local_lm", "base_model": str(model)}, "tokenizer", [None]
    )
    tokenizer = tokenizer_of(file)  # a byte is a token
    assert first_tokens(["abc", "defg", "hi"], 5, tokenizer) == ["abc", "de"]
    assert first_tokens(["abc", "de"], 5, tokenizer) == ["abc", "de"]
    assert first_tokens(["abc", "de"], 3, tokenizer) == ["abc"]
    assert first_tokens(["\u00e9\u00e9"], 3, tokenizer) == ["\u00e9"]
    assert first_tokens([], 3, tokenizer) == []


def test_an_endpoints_context_tokens_need_a_tokenizer() -> None:
    with pytest.raises(ValueError, match="name the model whose tokens context_tokens counts"):
        EndpointGenerator(base_url="http://x/v1", model="m", context_tokens=5)


class FakeHost:
    """Remembers prompts, and gives none for what has `!`."""

    def __init__(self) -> None:
        self.items: list[Any] = []

    def ask(self, spec: Mapping[str, Any], method: str, items: Sequence[Any], parameters: Mapping[str, Any]) -> Answers:
        from evaluators.base import Generation

        self.items += items
        return [
            (Unanswered("down") if "!" in json.dumps(item) else pack(Generation(" an answer\n", 3, 2)), Cost(1.0, 5))
            for item in items
        ]


def test_what_has_no_answer_is_none_and_counted() -> None:
    fake = FakeHost()
    calls = Calls(fake, None, "me")
    config = EndpointGenerator(base_url="http://x/v1", model="m", system="Be brief.", prompt="{context}|{question}")
    assert Generator(config, calls).answer([("a", ["p", "q"]), ("b!", [])]) == ["an answer", None]
    assert calls.usage["generate"].unanswered == 1
    assert fake.items[0] == {
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "p\n\nq|a"}]
    }


def test_whole_prompts_can_be_completed_for_another_stage() -> None:
    calls = Calls(FakeHost(), None, "me")
    config = EndpointGenerator(base_url="http://x/v1", model="m")
    assert Generator(config, calls).complete(["rewrite this"], "correct", 16) == ["an answer"]
    assert list(calls.usage) == ["correct"]


def test_the_spec_of_a_judge_has_its_role(model: Path) -> None:
    spec = spec_of(LocalGenerator(base_model=str(model)), "judge")
    assert spec == {
        "kind": "local_lm",
        "base_model": str(model),
        "batch_size": 8,
        "precision": "fp32",
        "trust_remote_code": False,
        "role": "judge",
    }
    endpoint = spec_of(EndpointGenerator(base_url="http://x/v1", model="m", api_key="MY_KEY"))
    assert (endpoint["kind"], endpoint["api_key"], "prompt" in endpoint) == ("openai_chat", "MY_KEY", False)
    assert kind_of(endpoint).remote


def test_a_prompt_that_the_model_cant_read_has_no_answer(model: Path) -> None:
    kind = LocalKind.load({"base_model": str(model)}, Devices(), Services())
    items = [{"prompt": "a" * 300}, {"prompt": "short"}]
    (long, _), (short, cost) = kind.answer("generate", items, {"max_new_tokens": 4})
    assert isinstance(long, Unanswered)
    assert "more than the model's 256" in long.reason
    assert isinstance(short, bytes)
    assert cost.tokens > 4


def test_identity_is_of_the_files_and_not_of_the_batch(model: Path, tmp_path: Path) -> None:
    spec = {"kind": "local_lm", "base_model": str(model)}
    found = LocalKind.identify(spec)
    assert found == LocalKind.identify({**spec, "batch_size": 2})
    assert LocalKind.identify({**spec, "precision": "bf16"}).dtype == "bfloat16"
    other = LocalKind.identify({**spec, "base_model": str(save_model(tmp_path / "other", seed=1))})
    assert (other.model != found.model, other.tokenizer == found.tokenizer) == (True, True)
    assert set(found.versions) == {"torch", "transformers"}


def test_identity_of_an_adapter_is_its_own_and_its_bases(model: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    from pipelines.finetune.model import load_folder

    adapter = tmp_path / "adapter"
    get_peft_model(load_folder(model).model, LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(adapter)
    spec = {"kind": "local_lm", "base_model": str(adapter)}
    found, base = LocalKind.identify(spec), LocalKind.identify({**spec, "base_model": str(model)})
    assert found.model != base.model
    assert found.tokenizer == base.tokenizer
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": 99}))
    assert LocalKind.identify(spec).model != found.model
    kind = LocalKind.load(spec, Devices(), Services(cache=str(tmp_path / "cache")))
    [(value, _)] = kind.answer("generate", [{"prompt": "a"}], {"max_new_tokens": 2})
    assert isinstance(value, bytes)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("/not/there", "does not exist"),
        ("sweep://x/best", "must be resolved"),
        ("package://no_such_package/x", "no package 'no_such_package'"),
    ],
)
def test_a_model_that_is_not_there_is_the_users(source: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        LocalKind.identify({"base_model": source})


WORKER = """
import sys
sys.path[:0] = {paths!r}
import test_generate
from pipelines.calls import Calls, make_calls
from pipelines.memo import LocalMemo
from pipelines.rag.generate import build_generator
from pipelines.rag.models import EndpointGenerator, LocalGenerator
host = test_generate.FakeHost()
with LocalMemo(sys.argv[2]) as memo:
    local = LocalGenerator(base_model=sys.argv[1])
    print(build_generator(local, Calls(host, memo, "me")).answer([("Q", ["p"])]))
    far = EndpointGenerator(base_url="http://127.0.0.1:9/v1", model="m", context_tokens=3, tokenizer=sys.argv[1])
    print(build_generator(far, Calls(host, memo, "me")).answer([("Q", ["passage"])]))
print("torch" in sys.modules)
"""


def test_a_trial_that_generates_loads_no_torch(model: Path, tmp_path: Path) -> None:
    here = Path(__file__).parent
    program = WORKER.format(paths=[str(here), str(here.parent)])
    done = subprocess.run(
        [sys.executable, "-c", program, str(model), str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.stdout.split("\n")[:3] == ["['an answer']", "['an answer']", "False"], done.stderr


def test_every_kind_of_model_resolves() -> None:
    for kind in calls_module.MODELS:
        found = kind_of({"kind": kind})
        assert found.role in ("embedder", "reranker", "generator", "judge")
        assert isinstance(found.remote, bool)
        assert callable(found.identify)
        assert callable(found.load)
