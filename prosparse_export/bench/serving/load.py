"""Send requests in closed and open loops and time the streams of tokens."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass

import httpx2
import numpy as np
from numpy.typing import NDArray

from prosparse_export.bench.serving.result import LoadOptions, LoadResult, Point, Request, summarize
from prosparse_export.errors import ProSparseError
from prosparse_export.progress import ProgressCallback, no_progress

__all__ = ["run_load"]

_REFUSED = (429, 503)
_UNKNOWN_CONTEXT = 1 << 30
_SECONDS = 600.0  # until an answer must be complete


@dataclass(frozen=True)
class _Work:
    """One request: token ids of the prompt, and how many new ones."""

    ids: list[int]
    count: int


def run_load(
    url: str, ids: NDArray[np.int64], options: LoadOptions, progress: ProgressCallback = no_progress
) -> LoadResult:
    """Measure a server.

    Args:
        url: of its API, with /v1.
        ids: a text as token ids; prompts are excerpts of it.
        options: the load.
        progress: called before each number of clients and each rate.

    Raises:
        ProSparseError: the server cannot be reached, or answers with an error.
    """
    try:
        return asyncio.run(_run(url.rstrip("/"), ids, options, progress))
    except httpx2.HTTPError as error:
        raise ProSparseError(
            f"serve: {url}: {str(error) or type(error).__name__}",
            hint="check that a server runs at this address",
        ) from error


async def _run(url: str, ids: NDArray[np.int64], options: LoadOptions, progress: ProgressCallback) -> LoadResult:
    headers = {} if options.api_key is None else {"Authorization": f"Bearer {options.api_key}"}
    # A connection per request: llama-server closes one after a stream without having said so.
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=0)
    async with httpx2.AsyncClient(headers=headers, timeout=_SECONDS, limits=limits) as http:
        answer = await http.get(f"{url}/models")
        _check(answer.status_code, answer.text)
        model = answer.json()["data"][0]
        context = int(model.get("context_length") or _UNKNOWN_CONTEXT)
        if options.prompt + options.answer > context:
            raise ProSparseError(
                f"serve: {url}: expected prompts and answers within {context} tokens, got medians of "
                f"{options.prompt} and {options.answer}",
                hint="lower --prompt or --answer",
            )
        server = _Server(http, url, str(model["id"]))
        await server.ask(
            _Work(ids[: options.prompt].tolist(), min(4, options.answer))
        )  # the first request may pay for allocations
        points: list[Point] = []
        loads = [*((c, "clients") for c in options.clients), *((r, "requests/s") for r in options.rates)]
        for number, (value, load) in enumerate(loads):
            progress(f"{load}: {value:g}", number, len(loads))
            rng = np.random.default_rng([options.seed, number])  # other prompts each time: the server caches prefixes
            count = max(options.requests, int(value) if load == "clients" else 1)
            work = _work(ids, options, context, count, rng)
            closed = load == "clients"
            answers = await (_closed(server, work, int(value)) if closed else _open(server, work, value, rng))
            answered = [item for item in answers if item is not None]
            points.append(summarize(load, value, answered, len(answers) - len(answered)))
    return LoadResult(url, server.model, tuple(points))


def _work(
    ids: NDArray[np.int64], options: LoadOptions, context: int, count: int, rng: np.random.Generator
) -> list[_Work]:
    """Return requests whose lengths have a log-normal distribution, cut at four times the median and the context."""
    found = []
    for _ in range(count):
        prompt, answer = (
            int(np.clip(median * np.exp(options.spread * rng.standard_normal()), 1, 4 * median))
            for median in (options.prompt, options.answer)
        )
        answer = min(answer, context - options.prompt)
        prompt = min(prompt, context - answer)
        begin = int(rng.integers(0, max(1, len(ids) - prompt)))
        found.append(_Work(ids[begin : begin + prompt].tolist(), answer))
    return found


async def _closed(server: _Server, work: Sequence[_Work], clients: int) -> list[Request | None]:
    waiting = iter(work)

    async def client() -> list[Request | None]:
        return [await server.ask(item) for item in waiting]

    return [answer for answers in await asyncio.gather(*(client() for _ in range(clients))) for answer in answers]


async def _open(server: _Server, work: Sequence[_Work], rate: float, rng: np.random.Generator) -> list[Request | None]:
    tasks = []
    for item in work:
        tasks.append(asyncio.create_task(server.ask(item)))
        await asyncio.sleep(float(rng.exponential(1 / rate)))
    return list(await asyncio.gather(*tasks))


class _Server:
    def __init__(self, http: httpx2.AsyncClient, url: str, model: str) -> None:
        self._http, self._url, self.model = http, url, model

    async def ask(self, work: _Work) -> Request | None:
        """Return the timed answer, or None if the server refused the request."""
        body = {
            "model": self.model,
            "prompt": work.ids,
            "max_tokens": work.count,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        began = time.perf_counter()
        times: list[float] = []
        tokens = 0
        async with self._http.stream("POST", f"{self._url}/completions", json=body) as answer:
            if answer.status_code in _REFUSED:
                return None
            if answer.status_code != 200:
                _check(answer.status_code, (await answer.aread()).decode(errors="replace"))
            async for line in answer.aiter_lines():
                if not line.startswith("data: {"):
                    continue
                chunk = json.loads(line.removeprefix("data: "))
                _check(500 if "error" in chunk else 200, line)
                tokens = (chunk.get("usage") or {}).get("completion_tokens", tokens)
                if any(choice.get("text") for choice in chunk["choices"]):
                    times.append(time.perf_counter())
        ended = time.perf_counter()
        gaps = tuple(after - before for before, after in itertools.pairwise(times))
        first = (times[0] if times else ended) - began
        return Request(began, first, gaps, ended, len(work.ids), tokens or len(times))


def _check(status: int, text: str) -> None:
    if status != 200:
        raise ProSparseError(
            f"serve: expected an answer, got status {status}: {' '.join(text.split())[:300]}",
            hint="check the server's log, its context, and --api-key",
        )
