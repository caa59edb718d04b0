"""What the endpoints share: the model, its texts as jobs, and the limits of a request."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeAlias

from prosparse_export.artifact.chat_template import ChatTemplate, ChatTemplateError
from prosparse_export.errors import ProSparseError
from prosparse_export.runtime.detokenizer import Detokenizer
from prosparse_export.runtime.model import SparseModel
from prosparse_export.runtime.sampling import Sampler, Sampling
from prosparse_export.serve.engine import Engine, QueueFullError
from prosparse_export.serve.errors import ApiError, invalid, of_error, shorten
from prosparse_export.serve.grammar import Grammars, Matcher, json_grammar
from prosparse_export.serve.job import Event, Job
from prosparse_export.serve.metrics import Metrics
from prosparse_export.serve.schema import ChatRequest, CompletionRequest, Message
from prosparse_export.serve.token_texts import TokenTexts
from prosparse_export.serve.tool_grammar import tool_grammar

__all__ = ["Events", "Service"]

Events: TypeAlias = "asyncio.Queue[tuple[int, Event]]"
"""Events of a request's texts, each with the number of its choice."""

_RESERVED = {"messages", "tools", "add_generation_prompt", "self"}  # the last: it is render's own argument


@dataclass(frozen=True)
class Service:
    """A model that is being served.

    Attributes:
        name: the model's name in requests and answers.
        model: an open decoder with a tokenizer.
        engine: runs the jobs.
        capacity: tokens per text, prompt included.
        rows: texts at a time.
        max_queue: texts that may wait.
        timeout: seconds until a text is given up.
        template: writes conversations as prompts; None if the model has no chat template.
        tool_template: the one for conversations with tools.
        metrics: counters.
        keys: accepted API keys; without any, everyone may ask.
        created: Unix time of the start.
    """

    name: str
    model: SparseModel
    engine: Engine
    capacity: int
    rows: int
    max_queue: int
    timeout: float
    template: ChatTemplate | None
    tool_template: ChatTemplate | None
    metrics: Metrics
    keys: tuple[str, ...] = ()
    created: int = field(default_factory=lambda: int(time.time()))

    @cached_property
    def _grammars(self) -> Grammars:
        assert self.model.tokenizer is not None
        return Grammars(self.model.tokenizer, self.model.stop)

    def check_model(self, name: str) -> None:
        """Refuse requests for another model.

        Raises:
            ApiError: the name is not this model's.
        """
        if name != self.name:
            raise ApiError(
                404, f"The model '{shorten(name)}' does not exist; this server has '{self.name}'", param="model",
                code="model_not_found",
            )  # fmt: skip

    @cached_property
    def token_texts(self) -> TokenTexts:
        """Texts of single tokens, for log probabilities."""
        assert self.model.tokenizer is not None
        return TokenTexts(self.model.tokenizer)

    @cached_property
    def _most_characters(self) -> int:
        """Characters of a text that can fit in the context: tokenizing more would be in vain."""
        assert self.model.tokenizer is not None
        return self.capacity * max(map(len, self.model.tokenizer.get_vocab()))

    def check_sequences(self, prompts: int, choices: int) -> None:
        """Refuse a request for more sequences than the queue holds, before any work is done for them.

        Raises:
            ApiError: there are too many.
        """
        if prompts * choices > self.max_queue:
            got = f"{prompts * choices} ({prompts} prompts x n = {choices})"
            raise invalid(
                f"expected at most {self.max_queue} sequences per request, got {got}",
                "prompt" if prompts > 1 else "n",
                "too_many_sequences",
            )

    def tokenize(self, prompt: str | Sequence[int], *, special: bool = True) -> list[int]:
        """Return the token ids of a prompt.

        Args:
            prompt: text or ids.
            special: let the tokenizer add its special tokens; a chat template has written them already.

        Raises:
            ApiError: an id is not in the vocabulary, or the prompt cannot fit in the context.
        """
        tokenizer = self.model.tokenizer
        assert tokenizer is not None
        if isinstance(prompt, str):
            if len(prompt) > self._most_characters:
                raise invalid(
                    f"This server's context is {self.capacity} tokens, but the prompt has {len(prompt)} characters",
                    "prompt",
                    "context_length_exceeded",
                )
            return list(tokenizer.encode(prompt, add_special_tokens=special).ids)
        size = tokenizer.get_vocab_size()
        if any(token >= size for token in prompt):
            message = f"prompt: expected token ids below {size}, got {shorten(max(prompt))}"
            raise invalid(message, "prompt", "invalid_value")
        return list(prompt)

    def render(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None, values: Mapping[str, Any]
    ) -> str:
        """Return a conversation as a prompt.

        Raises:
            ApiError: there is no template, or it refuses the conversation.
        """
        template = self.tool_template if tools else self.template
        if template is None:
            raise invalid(
                "This model has no chat template; use /v1/completions, or start the server with --chat-template",
                "messages",
                "no_chat_template",
            )
        reserved = _RESERVED & values.keys()
        if reserved:
            message = f"chat_template_kwargs: {sorted(reserved)[0]} is set by the server"
            raise invalid(message, "chat_template_kwargs", "invalid_value")
        try:
            return template.render([message.for_template() for message in messages], tools=tools, **values)
        except ChatTemplateError as error:
            message = str(error).replace(str(template.file), template.file.name)  # its folder is the server's matter
            message = f"{shorten(message, 300)} (check the roles and their order)"
            raise invalid(message, code="chat_template_failed") from error

    def compile_grammar(self, request: CompletionRequest | ChatRequest) -> Matcher | None:
        """Return what restricts the answer's tokens, or None if any text may be one. It may take a second.

        Raises:
            ApiError: a JSON schema is wrong, or uses what llguidance does not support.
        """
        schema = request.response_format.schema_to_follow() if request.response_format else None
        lark, field = None if schema is None else json_grammar(schema), "response_format"
        if isinstance(request, ChatRequest) and request.tools_to_use:
            parallel = request.parallel_tool_calls is not False
            lark = tool_grammar(request.tools_to_use, request.tool_choice, parallel=parallel, answer=schema)
            field = "tools" if schema is None else "tools or response_format"
        if lark is None:
            return None
        try:
            return self._grammars.matcher(lark, field)
        except ProSparseError as error:
            raise of_error(error, 400, code="invalid_json_schema") from error

    def submit(self, request: CompletionRequest | ChatRequest, prompts: Sequence[Sequence[int]], limit: int | None,
               top_logprobs: int | None, grammar: Matcher | None = None) -> tuple[list[Job], Events]:  # fmt: skip
        """Queue ``request.n`` texts for each prompt; return them and the queue that their events arrive in.

        Args:
            request: how to choose tokens, and when to stop.
            prompts: token ids.
            limit: maximum number of new tokens; None for as many as fit.
            top_logprobs: as in `Job`.
            grammar: from `compile_grammar`.

        Raises:
            ApiError: a prompt is too long, or the queue is full.
        """
        loop, events = asyncio.get_running_loop(), asyncio.Queue[tuple[int, Event]]()
        temperature = 1.0 if request.temperature is None else request.temperature
        sampling = Sampling(temperature, request.top_k or 0, request.top_p or 1.0, request.seed)
        assert self.model.tokenizer is not None
        jobs: list[Job] = []
        for prompt in prompts:
            count = self._new_tokens(len(prompt), limit)
            for _ in range(request.n):
                number = len(jobs)
                jobs.append(
                    Job(
                        ids=prompt,
                        max_tokens=count,
                        sampler=Sampler(sampling, 1, first=number),
                        text=Detokenizer(self.model.tokenizer, request.stops),
                        emit=lambda event, number=number: _send(loop, events, (number, event)),  # type: ignore[misc]
                        top_logprobs=top_logprobs,
                        grammar=None if grammar is None else grammar.copy(),
                        deadline=time.monotonic() + self.timeout,
                    )
                )
        self._queue(jobs)
        return jobs, events

    def _queue(self, jobs: Sequence[Job]) -> None:
        try:
            self.engine.submit(jobs)
        except QueueFullError as error:
            seconds = self.engine.seconds_until_free(self.rows)
            raise of_error(error, 429, code="queue_full", retry_after=seconds) from error

    def _new_tokens(self, prompt: int, limit: int | None) -> int:
        if prompt == 0:
            raise invalid("prompt: expected at least one token", "prompt", "invalid_value")
        left = self.capacity - prompt
        if left < 1 or (limit or 1) > left:
            new = limit or 1
            raise invalid(
                f"The context length is {self.capacity} tokens, but the request needs {shorten(prompt + new)} "
                f"({prompt} prompt + {shorten(new)} completion)",
                "max_tokens" if left >= 1 else "prompt",
                "context_length_exceeded",
            )
        return limit or left


def _send(loop: asyncio.AbstractEventLoop, events: Events, item: tuple[int, Event]) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(events.put_nowait, item)
