"""Build the service from an artifact and run it until a signal arrives."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import uvicorn

from prosparse_export.artifact.chat_template import read_chat_template
from prosparse_export.artifact.model_settings import missing_tokenizer
from prosparse_export.errors import ProSparseError
from prosparse_export.runtime.model import SparseModel
from prosparse_export.runtime.row_batch import RowBatch
from prosparse_export.serve.app import MAX_HEADERS, create_app
from prosparse_export.serve.engine import Engine
from prosparse_export.serve.memory import MemoryNeeds, available_bytes, check_memory, memory_needs
from prosparse_export.serve.metrics import Metrics
from prosparse_export.serve.prefix_cache import PrefixCache
from prosparse_export.serve.protocol import HttpProtocol
from prosparse_export.serve.scheduler import Scheduler
from prosparse_export.serve.service import Service

__all__ = ["ServeOptions", "listen", "open_service", "serve", "uvicorn_config"]

_UNKNOWN_CONTEXT = 2048
_ANSWERS = 20  # seconds after --drain: the step that runs has to end before requests get their error


@dataclass(frozen=True)
class ServeOptions:
    """How a model is served.

    Attributes:
        host: address to listen on.
        port: TCP port; 0 for any that is free.
        name: the model's name in requests; None for the file's.
        max_batch: texts that decode at a time.
        max_queue: texts that may wait for a row.
        context: tokens per text, prompt included; None for the model's.
        chunk: tokens of a prompt per step while other texts decode.
        prefix_cache: bytes for keys and values of earlier prompts.
        timeout: seconds until a text is given up.
        drain: seconds that running requests get to end after a signal.
        keys: accepted API keys; without any, everyone may ask.
        chat_template: a file to use instead of the model's template.
        threads: intra-op threads; None for one per physical core.
        log_requests: print a line per request.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    name: str | None = None
    max_batch: int = 8
    max_queue: int = 64
    context: int | None = None
    chunk: int = 64
    prefix_cache: int = 256 << 20
    timeout: float = 600.0
    drain: float = 30.0
    keys: tuple[str, ...] = ()
    chat_template: Path | None = None
    threads: int | None = None
    log_requests: bool = False


def open_service(path: Path, options: ServeOptions) -> tuple[Service, MemoryNeeds]:
    """Open an artifact; the engine is not started yet.

    Raises:
        ProSparseError: the artifact cannot be opened or served, or memory would not suffice.
    """
    model = SparseModel.open(path, threads=options.threads)
    if model.tokenizer is None:
        raise missing_tokenizer(path.parent)
    capacity = options.context or model.context or _UNKNOWN_CONTEXT
    if model.context is not None and capacity > model.context:
        raise ProSparseError(
            f"context: expected at most the model's {model.context} tokens, got {capacity}", hint="lower --context"
        )
    rows = RowBatch(model, options.max_batch, capacity)
    needs = memory_needs(
        path,
        rows=options.max_batch,
        capacity=capacity,
        token_bytes=rows.token_bytes,
        prefixes=options.prefix_cache,
    )
    check_memory(needs, available_bytes())
    metrics = Metrics()
    scheduler = Scheduler(
        rows,
        options.max_batch,
        model.stop,
        chunk=options.chunk,
        prefixes=PrefixCache(options.prefix_cache),
        metrics=metrics,
    )
    engine = Engine(scheduler, options.max_queue)
    metrics.watch("prosparse_running_sequences", "Sequences in the batch.", lambda: engine.running)
    metrics.watch("prosparse_waiting_sequences", "Sequences in the queue.", lambda: engine.waiting)
    service = Service(
        name=options.name or path.stem,
        model=model,
        engine=engine,
        capacity=capacity,
        rows=options.max_batch,
        max_queue=options.max_queue,
        timeout=options.timeout,
        template=read_chat_template(path.parent, options.chat_template),
        tool_template=read_chat_template(path.parent, options.chat_template, name="tool_use"),
        metrics=metrics,
        keys=options.keys,
    )
    return service, needs


def serve(
    service: Service, options: ServeOptions, ready: Callable[[str], None], draining: Callable[[int], None]
) -> None:
    """Answer requests until SIGINT or SIGTERM; running requests then have ``options.drain`` seconds to end.

    Args:
        service: from `open_service`.
        options: the same.
        ready: called with the server's URL once it accepts connections.
        draining: called after a signal with the number of sequences that still run or wait.

    Raises:
        ProSparseError: the address cannot be used.
    """
    with listen(options) as listener:
        host, port = listener.getsockname()[:2]
        service.engine.start()
        ready(f"http://{f'[{host}]' if ':' in host else host}:{port}")
        try:
            # uvicorn raises the signal again once it has shut down in order: that is what was asked for
            with contextlib.suppress(KeyboardInterrupt, SystemExit):
                _Server(service.engine, options, uvicorn_config(service, options), draining).run(sockets=[listener])
        finally:
            service.engine.stop()


class _Server(uvicorn.Server):
    """Gives requests that outlast ``--drain`` an answer: uvicorn alone would cut their connections."""

    def __init__(
        self, engine: Engine, options: ServeOptions, config: uvicorn.Config, draining: Callable[[int], None]
    ) -> None:
        super().__init__(config)
        self._engine, self._drain, self._draining = engine, options.drain, draining

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if left := self._engine.running + self._engine.waiting:
            self._draining(left)
        loop = asyncio.get_running_loop()
        timer = loop.call_later(self._drain, loop.run_in_executor, None, self._engine.stop)
        await super().shutdown(sockets)
        timer.cancel()


def uvicorn_config(service: Service, options: ServeOptions) -> uvicorn.Config:
    """Return how uvicorn runs the application."""
    return uvicorn.Config(
        create_app(service),
        log_level="info" if options.log_requests else "warning",
        access_log=options.log_requests,
        server_header=False,
        proxy_headers=False,
        h11_max_incomplete_event_size=MAX_HEADERS,
        http=HttpProtocol,
        ws="none",
        lifespan="off",
        timeout_graceful_shutdown=round(options.drain) + _ANSWERS,
    )


def listen(options: ServeOptions) -> socket.socket:
    """Return a socket that listens where the options say.

    Raises:
        ProSparseError: the address cannot be used.
    """
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    # With the protocol named, asyncio sets TCP_NODELAY on connections: without, tokens wait 40 ms for acknowledgements
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((options.host, options.port))
        listener.listen(1024)
    except (OSError, OverflowError) as error:
        listener.close()
        raise ProSparseError(
            f"serve: {options.host}:{options.port}: cannot listen: {error}", hint="choose another --host or --port"
        ) from error
    return listener
