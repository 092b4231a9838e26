"""The teacher of a distillation: a model, or an ensemble, that stays in memory and only answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import log_softmax

from pipelines.finetune.layers import listening
from pipelines.finetune.model import LoadedModel, load_folder, resolve
from pipelines.lm import trained_logits
from pipelines.stage import UserError


@dataclass
class Teacher:
    """Models that answer together, in evaluation mode and without gradients.

    Attributes:
        members: one for a single model.
    """

    members: Sequence[LoadedModel]

    @property
    def model(self) -> Any:
        """The single model.

        Raises:
            ValueError: for an ensemble, whose members share no hidden states.
        """
        [one] = self.members
        return one.model

    def answer(
        self, ids: torch.Tensor, mask: torch.Tensor, labels: torch.Tensor, layers: Sequence[int] = ()
    ) -> tuple[torch.Tensor, dict[int, torch.Tensor]]:
        """Logits at the trained-on positions, and what some layers put out.

        An ensemble's are the logarithm of the mean of its members' probabilities, so that a softmax gives that mean, and a
        temperature does to it what it does to one model's.

        Args:
            ids: (batch, seq) token ids.
            mask: (batch, seq) attention mask.
            labels: (batch, seq), see `trained_logits`.
            layers: of a single model, counted from 0.

        Returns:
            Logits (n, v) of the n trained-on tokens, and layer -> (batch, seq, hidden).
        """
        with torch.no_grad():
            if len(self.members) == 1:
                with listening(self.model, layers) as heard:
                    return trained_logits(self.model, ids, mask, labels)[0], heard
            total: torch.Tensor | None = None
            for member in self.members:
                found = log_softmax(trained_logits(member.model, ids, mask, labels)[0], dim=-1)
                total = found if total is None else torch.logaddexp(total, found)
            assert total is not None, "an ensemble has members"
            return total - torch.log(torch.tensor(float(len(self.members)), device=total.device)), {}


def load_teacher(sources: Sequence[str], cache: Path, *, trust_remote_code: bool, device: str) -> Teacher:
    """The models that a teacher's names stand for, each loaded once.

    Raises:
        UserError: if one can't be found or loaded.
    """
    members = []
    for source in sources:
        try:
            folder = resolve(source, cache, trust_remote_code=trust_remote_code)
            loaded = load_folder(folder, trust_remote_code=trust_remote_code, device=device)
        except UserError as error:
            raise UserError(str(error).replace("base_model:", "teacher:", 1)) from error
        loaded.model.requires_grad_(False)
        members.append(loaded)
    return Teacher(members)


def refuse_other_tokens(teacher: Teacher, student: LoadedModel) -> None:
    """Teacher and student must mean the same by every token.

    Embeddings may be of different heights, as where they are filled up to round numbers.

    Raises:
        UserError: naming a token that they differ in.
    """
    own = student.tokenizer.get_vocab()
    for member in teacher.members:
        other = member.tokenizer.get_vocab()
        if other == own:
            continue
        by_id, by_other = ({place: token for token, place in words.items()} for words in (own, other))
        places = sorted({*by_id, *by_other})
        first = next(place for place in places if by_id.get(place) != by_other.get(place))
        raise UserError(
            f"teacher: {member.folder} has another vocabulary than base_model: {len(other):,} tokens and not {len(own):,}, and "
            f"token {first} is {by_other.get(first)!r} and not {by_id.get(first)!r}. Probabilities are compared token by token: "
            "take a teacher and a student of one family"
        )
