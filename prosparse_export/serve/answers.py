"""Answers in the format of OpenAI's API: whole, and as the chunks of a stream.

Source: OpenAI's API reference, "The chat completion object", "The chat completion chunk object", "The completion
object".
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from prosparse_export.serve.job import Done, TokenLogprobs
from prosparse_export.serve.token_texts import TokenTexts
from prosparse_export.serve.tool_calls import Call, CallSplitter

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
        tokens: texts of tokens, for log probabilities.
        chat: a chat completion, not a completion.
        logprobs: log probabilities were asked for.
        tools: the request has tools, so an answer may have calls.
    """

    def __init__(self, name: str, tokens: TokenTexts, *, chat: bool, logprobs: bool, tools: bool = False) -> None:
        self._chat, self._wants_logprobs, self._tools = chat, logprobs, tools
        self._tokens = tokens
        self._head = {"id": f"{'chatcmpl' if chat else 'cmpl'}-{uuid.uuid4().hex}", "created": int(time.time())}
        self._model = name
        self._offsets: dict[int, int] = {}
        self._splitters: dict[int, CallSplitter] = {}

    def whole(self, choices: Sequence[Choice], prompt_tokens: int) -> dict[str, Any]:
        """Return the answer without streaming."""
        objects = [self._choice(number, choice) for number, choice in enumerate(choices)]
        kind = "chat.completion" if self._chat else "text_completion"
        return {**self._object(kind), "choices": objects, "usage": usage(choices, prompt_tokens)}

    def first_chunk(self, number: int) -> dict[str, Any] | None:
        """Return the chunk that begins a choice, if there is one."""
        return self._chunk(number, {"role": "assistant", "content": ""}, None, None) if self._chat else None

    def chunks(self, number: int, text: str, logprobs: TokenLogprobs | None) -> list[dict[str, Any]]:
        """Return the chunks of a piece of text: none if it tells nothing yet."""
        told = None
        if self._wants_logprobs and logprobs is not None:
            told = self._logprobs([logprobs], self._offsets.get(number, 0))
        self._offsets[number] = self._offsets.get(number, 0) + len(text)
        calls = self._splitter(number).calls
        parts = self._splitter(number).add(text) if self._tools else [text] * bool(text)
        chunks = []
        for part in parts or [""] * (told is not None):
            chunks.append(self._chunk(number, self._delta(part, calls), told, None))
            calls, told = calls + isinstance(part, dict), None
        return chunks

    def last_chunks(self, number: int, done: Done) -> list[dict[str, Any]]:
        """Return the chunks that end a choice."""
        splitter = self._splitter(number)
        rest = [self._chunk(number, self._delta(part, 0), None, None) for part in splitter.end()]
        return [*rest, self._chunk(number, {} if self._chat else "", None, _reason(done, splitter))]

    def _delta(self, part: str | Call, calls: int) -> object:
        """Return the content of a chunk; ``calls`` is the number of the choice's calls before it."""
        if isinstance(part, dict):
            return {"tool_calls": [{"index": calls, **part}]}
        return {"content": part} if self._chat else part

    def _splitter(self, number: int) -> CallSplitter:
        return self._splitters.setdefault(number, CallSplitter())

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
            message: dict[str, Any] = {"role": "assistant", "content": choice.text, "refusal": None}
            splitter = CallSplitter()
            parts = [*splitter.add(choice.text), *splitter.end()] if self._tools else []
            if splitter.calls:
                message["content"] = "".join(part for part in parts if isinstance(part, str)) or None
                message["tool_calls"] = [part for part in parts if isinstance(part, dict)]
            return {"message": message, **rest, "finish_reason": _reason(choice.done, splitter)}
        return {"text": choice.text, **rest}

    def _chunk(self, number: int, content: object, logprobs: object, reason: str | None) -> dict[str, Any]:
        kind, key = ("chat.completion.chunk", "delta") if self._chat else ("text_completion", "text")
        choice = {"index": number, key: content, "logprobs": logprobs, "finish_reason": reason}
        return {**self._object(kind), "choices": [choice]}

    def _logprobs(self, found: Sequence[TokenLogprobs], offset: int) -> dict[str, Any]:
        if self._chat:
            return {"content": [self._chat_token(token) for token in found], "refusal": None}
        tokens = [token.token[0] for token in found]
        return {
            "tokens": [self._tokens.text(token, "bytes:") for token in tokens],
            "token_logprobs": [token.token[1] for token in found],
            "top_logprobs": [{self._tokens.text(i, "bytes:"): value for i, value in token.top} for token in found],
            "text_offset": [offset + count for count in self._tokens.offsets(tokens)],
        }

    def _chat_token(self, token: TokenLogprobs) -> dict[str, Any]:
        return {**self._one(*token.token), "top_logprobs": [self._one(*item) for item in token.top]}

    def _one(self, token: int, logprob: float) -> dict[str, Any]:
        return {"token": self._tokens.text(token), "logprob": logprob, "bytes": list(self._tokens.utf8(token))}


def _reason(done: Done, splitter: CallSplitter) -> str:
    return "tool_calls" if done.reason == "stop" and splitter.calls else done.reason


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
