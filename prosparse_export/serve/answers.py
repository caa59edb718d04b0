"""Answers as OpenAI's interface has them: whole, and as the chunks of a stream.

Source: OpenAI's API reference, "The chat completion object", "The chat completion chunk object", "The completion
object".
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from tokenizers import Tokenizer

from prosparse_export.serve.job import Done, TokenLogprobs
from prosparse_export.serve.tool_calls import split_tool_calls

__all__ = ["Answer", "Choice", "usage"]


@dataclass
class Choice:
    """One text so far."""

    text: str = ""
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    done: Done | None = None


class Answer:
    """Builds the objects of one answer.

    Args:
        name: the model's.
        tokenizer: for the texts of tokens in log probabilities.
        chat: a chat completion, not a completion.
        logprobs: log probabilities were asked for.
        tools: the request has tools, so a whole chat completion may have calls.
    """

    def __init__(self, name: str, tokenizer: Tokenizer, *, chat: bool, logprobs: bool, tools: bool = False) -> None:
        self._chat, self._wants_logprobs, self._tools = chat, logprobs, tools
        self._tokens = _TokenTexts(tokenizer)
        self._head = {"id": f"{'chatcmpl' if chat else 'cmpl'}-{uuid.uuid4().hex}", "created": int(time.time())}
        self._model = name
        self._offsets: dict[int, int] = {}

    def whole(self, choices: Sequence[Choice], prompt_tokens: int) -> dict[str, Any]:
        """Return the answer without streaming."""
        objects = [self._choice(number, choice) for number, choice in enumerate(choices)]
        kind = "chat.completion" if self._chat else "text_completion"
        return {**self._object(kind), "choices": objects, "usage": usage(choices, prompt_tokens)}

    def first_chunk(self, number: int) -> dict[str, Any] | None:
        """Return the chunk that begins a choice, if there is one."""
        return self._chunk(number, {"role": "assistant", "content": ""}, None, None) if self._chat else None

    def chunk(self, number: int, text: str, logprobs: TokenLogprobs | None) -> dict[str, Any]:
        """Return the chunk of a piece of text."""
        found = [] if logprobs is None else [logprobs]
        told = self._logprobs(found, self._offsets.get(number, 0)) if self._wants_logprobs else None
        self._offsets[number] = self._offsets.get(number, 0) + len(text)
        return self._chunk(number, {"content": text} if self._chat else text, told, None)

    def last_chunk(self, number: int, done: Done) -> dict[str, Any]:
        """Return the chunk that ends a choice."""
        return self._chunk(number, {} if self._chat else "", None, done.reason)

    def usage_chunk(self, choices: Sequence[Choice], prompt_tokens: int) -> dict[str, Any]:
        """Return the chunk that counts tokens."""
        kind = "chat.completion.chunk" if self._chat else "text_completion"
        return {**self._object(kind), "choices": [], "usage": usage(choices, prompt_tokens)}

    def _object(self, kind: str) -> dict[str, Any]:
        return {**self._head, "object": kind, "model": self._model}

    def _choice(self, number: int, choice: Choice) -> dict[str, Any]:
        assert choice.done is not None
        told = self._logprobs(choice.logprobs, 0) if self._wants_logprobs else None
        rest: dict[str, Any] = {"index": number, "logprobs": told, "finish_reason": choice.done.reason}
        if self._chat:
            content, calls = split_tool_calls(choice.text) if self._tools else (choice.text, [])
            message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
            if calls:
                message["tool_calls"] = calls
                if choice.done.reason == "stop":
                    rest["finish_reason"] = "tool_calls"
            return {"message": message, **rest}
        return {"text": choice.text, **rest}

    def _chunk(self, number: int, content: object, logprobs: object, reason: str | None) -> dict[str, Any]:
        kind, key = ("chat.completion.chunk", "delta") if self._chat else ("text_completion", "text")
        choice = {"index": number, key: content, "logprobs": logprobs, "finish_reason": reason}
        return {**self._object(kind), "choices": [choice]}

    def _logprobs(self, found: Sequence[TokenLogprobs], offset: int) -> dict[str, Any]:
        if self._chat:
            return {"content": [self._chat_token(token) for token in found], "refusal": None}
        texts = [self._tokens.text(token.token[0]) for token in found]
        offsets = [offset + sum(map(len, texts[:i])) for i in range(len(texts))]
        return {
            "tokens": texts,
            "token_logprobs": [token.token[1] for token in found],
            "top_logprobs": [{self._tokens.text(i): value for i, value in token.top} for token in found],
            "text_offset": offsets,
        }

    def _chat_token(self, token: TokenLogprobs) -> dict[str, Any]:
        return {**self._one(*token.token), "top_logprobs": [self._one(*item) for item in token.top]}

    def _one(self, token: int, logprob: float) -> dict[str, Any]:
        text = self._tokens.text(token)
        return {"token": text, "logprob": logprob, "bytes": list(text.encode())}


def usage(choices: Sequence[Choice], prompt_tokens: int) -> dict[str, Any]:
    """Return the count of tokens; a prompt counts once, whatever its number of choices."""
    done = [choice.done for choice in choices if choice.done is not None]
    new = sum(item.completion_tokens for item in done)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": new,
        "total_tokens": prompt_tokens + new,
        "prompt_tokens_details": {"cached_tokens": min((item.cached_tokens for item in done), default=0)},
    }


class _TokenTexts:
    def __init__(self, tokenizer: Tokenizer) -> None:
        self._decode = tokenizer.decode
        self.text = lru_cache(maxsize=4096)(self._text)

    def _text(self, token: int) -> str:
        """Return a token's text in the middle of a text: tokenizers drop the space before a first word."""
        once = self._decode([token], skip_special_tokens=False)
        twice = self._decode([token, token], skip_special_tokens=False)
        return str(twice[len(once) :])
