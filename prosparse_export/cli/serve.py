"""``prosparse serve``."""

from __future__ import annotations

from pathlib import Path

import click

from prosparse_export.cli.command import CONTEXT, ProSparseCommand
from prosparse_export.cli.extras import require_packages

__all__ = ["serve_command"]

_EXAMPLES = """
Examples:
  prosparse serve out/demo/demo.onnx
  prosparse serve out/7b/m.onnx --max-batch 4 --context 4096 --threads 8
  PROSPARSE_API_KEY=secret prosparse serve out/7b/m.onnx --host 0.0.0.0 --name assistant
  curl http://127.0.0.1:8000/v1/completions -H "Content-Type: application/json" \\
    -d '{"model": "demo", "prompt": "The city of Paris is", "max_tokens": 16, "temperature": 0}'
"""


@click.command(
    "serve",
    cls=ProSparseCommand,
    context_settings=CONTEXT,
    epilog=_EXAMPLES,
    short_help="Serve a model over an OpenAI-compatible API.",
)
@click.argument("onnx_file", type=click.Path(path_type=Path))
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="TCP port; 0 means any free one."
)
@click.option("--name", help="The model's name in requests.  [default: file name without .onnx]")
@click.option(
    "--max-batch", type=click.IntRange(min=1), default=8, show_default=True, help="Maximum sequences per batch."
)
@click.option(
    "--max-queue",
    type=click.IntRange(min=1),
    default=64,
    show_default=True,
    help="Maximum queued sequences; beyond it, 429.",
)
@click.option(
    "--context", type=click.IntRange(min=2), help="Tokens per sequence, prompt included.  [default: the model's]"
)
@click.option(
    "--chunk",
    type=click.IntRange(min=1),
    default=64,
    show_default=True,
    help="Prompt tokens per step while other sequences decode.",
)
@click.option(
    "--prefix-cache",
    type=click.IntRange(min=0),
    default=256,
    show_default=True,
    help="Prefix cache size in MB; 0 disables it.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=1),
    default=600,
    show_default=True,
    help="Time limit per sequence in seconds, including queueing; then 408.",
)
@click.option(
    "--drain",
    type=click.FloatRange(min=1),
    default=30,
    show_default=True,
    help="Seconds for running requests to finish after SIGINT or SIGTERM.",
)
@click.option(
    "--api-key",
    "keys",
    multiple=True,
    envvar="PROSPARSE_API_KEY",
    help="Accept only requests with this key. Repeatable. PROSPARSE_API_KEY sets it without showing it in `ps`.",
)
@click.option("--chat-template", type=click.Path(path_type=Path), help="Jinja template to use instead of the model's.")
@click.option("--threads", type=click.IntRange(min=1), help="Intra-op threads.  [default: one per physical core]")
@click.option("--log-requests", is_flag=True, help="Log one line per request.")
def serve_command(
    onnx_file: Path,
    host: str,
    port: int,
    name: str | None,
    max_batch: int,
    max_queue: int,
    context: int | None,
    chunk: int,
    prefix_cache: int,
    timeout: float,
    drain: float,
    keys: tuple[str, ...],
    chat_template: Path | None,
    threads: int | None,
    log_requests: bool,
) -> None:
    """Serve ONNX_FILE over an OpenAI-compatible API, with continuous batching.

    Endpoints: /v1/chat/completions, /v1/completions, /v1/models, /health, /metrics. All active sequences share each
    decode step; new sequences join between steps. After Ctrl-C or SIGTERM, running requests finish and new connections
    are refused.
    """
    if not all(key.strip() for key in keys):
        raise click.BadParameter("expected a key, got an empty string", param_hint="--api-key")
    require_packages("llguidance", "prometheus_client", "pydantic", "starlette", "uvicorn", extra="serve")
    from prosparse_export.serve.heap import bound_heap
    from prosparse_export.serve.server import ServeOptions, open_service, serve

    bound_heap()
    options = ServeOptions(
        host=host,
        port=port,
        name=name,
        max_batch=max_batch,
        max_queue=max_queue,
        context=context,
        chunk=chunk,
        prefix_cache=prefix_cache * 1_000_000,
        timeout=timeout,
        drain=drain,
        keys=keys,
        chat_template=chat_template,
        threads=threads,
        log_requests=log_requests,
    )
    service, needs = open_service(onnx_file, options)
    click.echo(f"memory: at most {needs}", err=True)
    if not keys and host not in ("127.0.0.1", "::1", "localhost"):
        click.echo(f"warning: anyone who can reach {host} can use this server: set PROSPARSE_API_KEY", err=True)
    serve(
        service,
        options,
        lambda url: click.echo(f"serving {service.name} at {url}/v1", err=True),
        lambda left: click.echo(f"shutting down: sequences left: {left}, {drain:g} s to finish", err=True),
    )
