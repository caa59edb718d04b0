"""A conversation with a model: what has been computed stays in the KV cache."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from prosparse_export.artifact.chat_template import ChatTemplate
from prosparse_export.artifact.model_settings import missing_tokenizer
from prosparse_export.errors import ProSparseError
from prosparse_export.runtime.detokenizer import Detokenizer
from prosparse_export.runtime.model import SparseModel
from prosparse_export.runtime.row_batch import RowBatch
from prosparse_export.runtime.sampling import Sampler, Sampling

__all__ = ["Chat"]

_CHUNK = 512  # tokens of a prompt that run at once


class Chat:
    """A conversation of one user. Not thread-safe.

    Args:
        model: a decoder with a tokenizer and fused attention.
        template: writes the conversation as a prompt.
        sampling: how tokens are chosen.
        max_new_tokens: maximum number of tokens per reply; None for as many as fit.
        system: the first message, or None.

    Raises:
        ProSparseError: there is no tokenizer or context length, or attention is not fused.
    """

    def __init__(
        self,
        model: SparseModel,
        template: ChatTemplate,
        sampling: Sampling,
        max_new_tokens: int | None = None,
        system: str | None = None,
    ) -> None:
        if model.tokenizer is None:
            raise missing_tokenizer(model.path.parent)
        if model.context is None:
            raise ProSparseError(
                f"chat: {model.path.parent / 'config.json'} has no max_position_embeddings",
                hint="add it to config.json: the conversation's maximum number of tokens",
            )
        self._model, self._tokenizer, self._template = model, model.tokenizer, template
        self._context, self._limit = model.context, max_new_tokens
        self._sampler = Sampler(sampling, 1)
        self._row = RowBatch(model, 1, model.context)
        self._first = [{"role": "system", "content": system}] if system else []
        self._messages = list(self._first)
        self._computed: list[int] = []  # token ids in the cache

    @property
    def tokens(self) -> int:
        """Tokens of the conversation in the KV cache."""
        return len(self._computed)

    def reset(self) -> None:
        """Forget the conversation, except for the system message."""
        self._messages = list(self._first)
        self._computed = []
        self._row.truncate(0, 0)

    def reply(self, text: str) -> Iterator[str]:
        """Yield the model's reply to ``text`` in pieces; if the caller stops early, what it has seen is the reply.

        Raises:
            ProSparseError: the template refuses the message, or the conversation is longer than the context.
        """
        self._messages.append({"role": "user", "content": text})
        said: list[str] = []
        try:
            ids = self._prompt()
            for piece in self._generate(ids):
                said.append(piece)
                yield piece
        finally:
            if said:
                self._messages.append({"role": "assistant", "content": "".join(said)})
            else:
                self._messages.pop()

    def _prompt(self) -> list[int]:
        prompt = self._template.render(self._messages)
        ids = list(self._tokenizer.encode(prompt, add_special_tokens=False).ids)
        if len(ids) >= self._context:
            raise ProSparseError(
                f"context: expected at most {self._context} tokens, got {len(ids)} in the conversation",
                hint="begin a new conversation with /reset",
            )
        return ids

    def _generate(self, ids: list[int]) -> Iterator[str]:
        known = next((i for i, pair in enumerate(zip(ids, self._computed, strict=False)) if pair[0] != pair[1]), None)
        known = min(len(self._computed), len(ids)) if known is None else known
        known = min(known, len(ids) - 1)  # the last token's logits are needed
        self._row.truncate(0, known)
        self._computed = ids[:known]
        logits = np.empty(0, np.float32)
        for begin in range(known, len(ids), _CHUNK):
            part = ids[begin : begin + _CHUNK]
            logits = self._row.prefill(0, part)
            self._computed += part
        text = Detokenizer(self._tokenizer)
        count = min(self._limit or self._context, self._context - len(ids))
        for number in range(count):
            token = int(self._sampler.choose(logits[None])[0])
            if token in self._model.stop:
                break
            yield text.add(token)
            if number < count - 1:
                logits = self._row.step([token])[0]
                self._computed.append(token)
        yield text.end()
