"""The local language model: batches change nothing, losses are the Trainer's, and the memo asks once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import save_model, sums

from evaluators.base import Example, Generation, GenerationRequest, LanguageModel, RowLoss
from pipelines.continuations import Piece, windows
from pipelines.finetune.data import encode
from pipelines.finetune.model import load_folder
from pipelines.lm import LocalLanguageModel, pad, trained_logits
from pipelines.memo import LocalMemo
from pipelines.memoised_lm import memoised

PROMPTS = ["a", "two plus two is ", "Once upon a time there was", "xyz " * 9, "", "b"]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Any:
    found = load_folder(save_model(tmp_path_factory.mktemp("tiny")))
    with torch.no_grad():  # sharper than at birth, so that answers end and differ
        for name, weight in found.model.named_parameters():
            if "norm" not in name:
                weight.mul_(8.0)
    return found


def lm(loaded: Any, batch_size: int = 4, **more: Any) -> LocalLanguageModel:
    return LocalLanguageModel(loaded.model, loaded.tokenizer, batch_size=batch_size, **more)


def examples() -> list[Example]:
    rows = [Example(str(i), str(i), row["prompt"], row["completion"]) for i, row in enumerate(sums(9))]
    return [
        *rows,
        Example("t", "t", None, "some plain text"),
        Example("c", "c", ({"role": "user", "content": "hi"},), "yo"),
    ]


def test_it_is_a_language_model(loaded: Any) -> None:
    assert isinstance(lm(loaded), LanguageModel)


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_batched_answers_equal_single_ones(loaded: Any, temperature: float) -> None:
    requests = [
        GenerationRequest(prompt, max_new_tokens=5 + 4 * i, temperature=temperature, seed=i)
        for i, prompt in enumerate(PROMPTS)
    ]
    together = lm(loaded, 6).generate(requests)
    assert together == [lm(loaded, 1).generate([request])[0] for request in requests]
    assert together == lm(loaded, 6).generate(requests[::-1])[::-1]
    assert len({g.text for g in together}) > 3
    assert all(g.new_tokens <= r.max_new_tokens for g, r in zip(together, requests, strict=True))


def test_greedy_answers_equal_transformers_own(loaded: Any) -> None:
    for prompt in PROMPTS[:4]:
        ids = loaded.tokenizer(prompt, return_tensors="pt")
        theirs = loaded.model.generate(**ids, max_new_tokens=12, do_sample=False)[0, ids["input_ids"].shape[1] :]
        [ours] = lm(loaded).generate([GenerationRequest(prompt, max_new_tokens=12)])
        assert ours.text == loaded.tokenizer.decode(theirs, skip_special_tokens=True)


def test_another_seed_draws_another_answer(loaded: Any) -> None:
    texts = {lm(loaded).generate([GenerationRequest("a", 20, 1.5, seed)])[0].text for seed in range(4)}
    assert len(texts) == 4


def test_stop_strings_end_an_answer_and_are_cut_off(loaded: Any) -> None:
    [free] = lm(loaded).generate([GenerationRequest("two plus two is ", max_new_tokens=20)])
    stop = free.text[4]
    [cut] = lm(loaded).generate([GenerationRequest("two plus two is ", max_new_tokens=20, stop=(stop, "never there"))])
    assert cut.text == free.text[: free.text.index(stop)]
    assert cut.new_tokens < free.new_tokens


def test_chats_are_rendered_and_counted(loaded: Any) -> None:
    [answer] = lm(loaded).generate([GenerationRequest(({"role": "user", "content": "hi"},), max_new_tokens=3)])
    rendered = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert answer.prompt_tokens == len(loaded.tokenizer(rendered)["input_ids"])


def test_losses_do_not_depend_on_the_batch(loaded: Any) -> None:
    rows = examples()
    together, single = lm(loaded, 11).token_losses(rows), [lm(loaded, 1).token_losses([row])[0] for row in rows]
    assert [a.tokens for a in together] == [b.tokens for b in single]
    assert [a.nats for a in together] == pytest.approx([b.nats for b in single], rel=1e-5)


def test_losses_are_the_models_own(loaded: Any) -> None:
    for row in examples():
        encoded = encode(row, loaded.tokenizer, 64)
        with torch.no_grad():
            mean = loaded.model(torch.tensor([encoded.ids]), labels=torch.tensor([encoded.labels])).loss
        [loss] = lm(loaded).token_losses([row])
        assert loss.tokens == encoded.trained
        assert loss.nats / loss.tokens == pytest.approx(float(mean), rel=1e-5)


def test_a_row_cut_to_its_prompt_has_no_tokens(loaded: Any) -> None:
    row = Example("x", "x", "a" * 30, "b")
    assert lm(loaded, sequence_len=16).token_losses([row, examples()[0]])[0] == RowLoss(0.0, 0)


def test_trained_logits_are_those_of_the_whole_pass(loaded: Any) -> None:
    rows = [encode(row, loaded.tokenizer, 64) for row in examples()]
    ids, mask, labels = pad(rows, loaded.tokenizer.pad_token_id)
    with torch.no_grad():
        logits, targets, owner = trained_logits(loaded.model, ids, mask, labels)
        whole = loaded.model(input_ids=ids, attention_mask=mask).logits
    wanted = labels[:, 1:] != -100
    assert torch.allclose(logits, whole[:, :-1][wanted], atol=1e-4)
    assert targets.tolist() == labels[:, 1:][wanted].tolist()
    assert torch.bincount(owner).tolist() == [row.trained for row in rows]
    assert loaded.model(input_ids=ids[:1]).logits.dim() == 3


def test_likelihoods_add_up_and_know_the_greedy_answer(loaded: Any) -> None:
    [free] = lm(loaded).generate([GenerationRequest("abc", max_new_tokens=4)])
    assert free.text
    (nats, greedy), (_, not_greedy) = lm(loaded).loglikelihood([("abc", free.text), ("abc", "qq")])
    assert greedy
    assert not not_greedy
    [(alone, _)] = lm(loaded, 1).loglikelihood([("abc", free.text)])
    assert nats == pytest.approx(alone, rel=1e-5)
    [(first, _), (second, _), (both, _)] = lm(loaded).loglikelihood([("abc", "q"), ("abcq", "q"), ("abc", "qq")])
    assert both == pytest.approx(first + second, rel=1e-4)
    assert math.isfinite(lm(loaded).loglikelihood([("", "abc")])[0][0])


def test_the_models_mode_is_put_back(loaded: Any) -> None:
    loaded.model.train()
    lm(loaded).token_losses(examples()[:1])
    assert loaded.model.training
    loaded.model.eval()


class Counting:
    """A language model that counts what it is asked."""

    def __init__(self) -> None:
        self.asked = 0

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Generation]:
        self.asked += len(requests)
        return [Generation(f"{r.prompt}!{r.seed}", 1, 2) for r in requests]

    def loglikelihood(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[float, bool]]:
        self.asked += len(pairs)
        return [(-0.1 * len(a), True) for a, _ in pairs]

    def token_losses(self, rows: Sequence[Example]) -> list[RowLoss]:
        self.asked += len(rows)
        return [RowLoss(1 / 3, len(row.completion)) for row in rows]


def test_the_memo_asks_once_and_answers_alike(tmp_path: Path) -> None:
    plain, counting = Counting(), Counting()
    requests = [GenerationRequest("a"), GenerationRequest("b", seed=3, temperature=1.0), GenerationRequest("a", seed=9)]
    pairs = [("x", "y"), ("xx", "y")]
    with LocalMemo(tmp_path) as memo:

        def wrapped(**changed: Any) -> Any:
            words = {"model_hash": "m", "tokenizer_hash": "t", "dtype": "float32", "settings": {"sequence_len": 8}}
            return memoised(counting, memo, **{**words, **changed})

        for _ in range(2):
            assert wrapped().generate(requests)[1] == plain.generate(requests)[1]
            assert wrapped().loglikelihood(pairs) == plain.loglikelihood(pairs)
            assert wrapped().token_losses(examples()) == plain.token_losses(examples())
        assert counting.asked == 2 + 2 + 11  # greedy answers share one entry whatever their seed
        wrapped(model_hash="other").token_losses(examples())
        wrapped(settings={"sequence_len": 9}).token_losses(examples())
        assert counting.asked == 15 + 22


def plainly(model: Any, tokenizer: Any, context: str, continuation: str) -> tuple[float, bool]:
    """The log-likelihood by one forward pass over the whole row, without a cache."""
    ids = tokenizer(context + continuation)["input_ids"]
    start = len(tokenizer(context)["input_ids"])
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids])).logits[0, start - 1 : -1].double()
    targets = torch.tensor(ids[start:])
    nats = torch.log_softmax(logits, -1)[range(len(targets)), targets].sum()
    return float(nats), bool((logits.argmax(-1) == targets).all())


def test_choices_of_one_context_cost_its_tokens_once_and_score_as_if_read_alone(loaded: Any) -> None:
    contexts = ["what is " + "x" * n for n in (3, 40, 11)]
    pairs = [(context, more) for context in contexts for more in (" a", " bcd", "q", " efghijk lm")]
    pairs += [("alone", " here"), ("", "abc"), ("", "abd")]
    read = []
    hook = loaded.model.get_input_embeddings().register_forward_hook(lambda _, inputs, __: read.append(inputs[0].shape))
    try:
        for batch_size in (1, 2, 3, 16):
            read.clear()
            found = lm(loaded, batch_size).loglikelihood(pairs)
            assert max(shape[0] for shape in read) <= batch_size
            for (context, more), (nats, greedy) in zip(pairs, found, strict=True):
                if context:
                    expected = plainly(loaded.model, loaded.tokenizer, context, more)
                    assert nats == pytest.approx(expected[0], rel=1e-6, abs=1e-6)
                    assert greedy == expected[1]
        read.clear()
        lm(loaded, 1).loglikelihood(pairs)
        assert sum(shape[1] for shape in read) <= sum(map(len, contexts)) + sum(len(more) for _, more in pairs) + 10
    finally:
        hook.remove()


def test_a_text_longer_than_the_model_is_read_in_windows_that_score_each_token_once() -> None:
    ids = tuple(range(25))
    pieces = windows(ids, 1, 8)
    assert [piece.scored for piece in pieces] == [ids[1:9], ids[9:17], ids[17:25]]
    assert [len(piece.ids) for piece in pieces] == [9, 9, 9]
    assert [piece.scored for piece in windows(ids, 1, 10)] == [ids[1:11], ids[11:21], ids[21:25]]
    assert windows(ids, 1, 10)[-1].ids == ids[14:25]
    assert windows(ids, 20, 10) == [Piece(ids[14:], 6)]
    assert windows(ids, 20, None) == [Piece(ids, 20)]
    assert windows(ids, 25, 10) == []


def test_a_context_too_long_for_the_model_counts_by_its_last_tokens(loaded: Any) -> None:
    longest = loaded.model.config.max_position_embeddings
    [(nats, _), (same, _)] = lm(loaded).loglikelihood([("x" * 300, "abc"), ("x" * (longest - 2), "abc")])
    assert nats == pytest.approx(same, rel=1e-6)
    [(long, _)] = lm(loaded).loglikelihood([("", "y" * 600)])
    assert math.isfinite(long)
    assert long < nats
