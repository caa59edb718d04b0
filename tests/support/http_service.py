"""A service whose texts are made up at once: the HTTP modules without a model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from starlette.testclient import TestClient
from tokenizers import Tokenizer, models, pre_tokenizers

from prosparse_export.artifact.chat_template import ChatTemplate
from prosparse_export.serve.app import create_app
from prosparse_export.serve.engine import QueueFullError
from prosparse_export.serve.job import Done, Event, Job, Piece, TokenLogprobs
from prosparse_export.serve.metrics import Metrics
from prosparse_export.serve.service import Service

TEMPLATE = """{% for m in messages %}{% if m.role == 'judge' %}{{ raise_exception('unknown role') }}{% endif %}
{{ m.content }} {% endfor %}{{ 1 // zero if zero is defined }}"""
WORDS = ("<unk>", "one", "two", "three")


class Texts:
    """An engine that tells each job ``events`` at once; ``full`` refuses jobs."""

    def __init__(self) -> None:
        self.events: list[Event] = [Piece("one", _logprobs(1)), Piece(" two", _logprobs(2)), Done("stop", 3, 0)]
        self.jobs: list[Job] = []
        self.full, self.alive, self.running, self.waiting = False, True, 0, 0

    def submit(self, jobs: Sequence[Job]) -> None:
        if self.full:
            raise QueueFullError("The queue is full: 2 waiting, 1 requested, limit 2", hint="retry later")
        self.jobs += jobs
        for job in jobs:
            for event in self.events:
                job.emit(event)

    def seconds_until_free(self, rows: int) -> int:
        return 5 * rows


def _logprobs(token: int) -> TokenLogprobs:
    return TokenLogprobs((token, -0.5), ((token, -0.5), (3, -1.5)))


def tokenizer() -> Tokenizer:
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return made


def make_service(texts: Texts, *, template: str | None = TEMPLATE, **options: Any) -> Service:
    compiled = None if template is None else ChatTemplate(template, {}, Path("chat_template.jinja"))
    return Service(
        name="words",
        model=cast(Any, SimpleNamespace(tokenizer=tokenizer(), stop=frozenset[int]())),
        engine=cast(Any, texts),
        capacity=32,
        rows=2,
        max_queue=8,
        timeout=5.0,
        template=compiled,
        tool_template=compiled,
        metrics=Metrics(),
        **options,
    )


def client_of(service: Service) -> TestClient:
    """A client that gets the answer to a bug too, instead of the bug."""
    return TestClient(create_app(service), raise_server_exceptions=False)
