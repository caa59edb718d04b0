"""``prosparse bench --serve``: its options, and the run."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from prosparse_export.cli.display import stages
from prosparse_export.cli.extras import require_packages

__all__ = ["bench_serving", "check_serving_options", "serving_options"]

_Function = TypeVar("_Function", bound=Callable[..., Any])
_OPTIONS = (
    click.option(
        "--serve", is_flag=True, help="Benchmark prosparse serve under load instead. The options below require it."
    ),
    click.option("--url", help="Benchmark this server (with /v1) instead of starting one.  [default: start one]"),
    click.option(
        "--clients",
        type=click.IntRange(min=1),
        multiple=True,
        default=(1, 4, 16),
        show_default=True,
        help="Closed loop: each client sends its next request when the previous one completes. Repeatable.",
    ),
    click.option(
        "--rate",
        type=click.FloatRange(min=0, min_open=True),
        multiple=True,
        help="Open loop: Poisson arrivals, in requests per second. Repeatable.",
    ),
    click.option(
        "--requests",
        type=click.IntRange(min=1),
        default=32,
        show_default=True,
        help="Requests per number of clients, and per rate.",
    ),
    click.option(
        "--prompt", type=click.IntRange(min=1), default=128, show_default=True, help="Median prompt length in tokens."
    ),
    click.option(
        "--answer", type=click.IntRange(min=1), default=64, show_default=True, help="Median answer length in tokens."
    ),
    click.option(
        "--spread",
        type=click.FloatRange(min=0),
        default=0.5,
        show_default=True,
        help="Standard deviation of the logarithm of lengths; 0 means fixed lengths.",
    ),
    click.option(
        "--max-batch",
        type=click.IntRange(min=1),
        default=16,
        show_default=True,
        help="--max-batch of the server that is started.",
    ),
    click.option(
        "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Random seed of prompts and lengths."
    ),
    click.option("--api-key", envvar="PROSPARSE_API_KEY", help="API key of the server at --url, or PROSPARSE_API_KEY."),
)


def serving_options(function: _Function) -> _Function:
    """Add the options to a command."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


def check_serving_options(serve: bool, own: Iterable[str], others: Iterable[str]) -> None:
    """Refuse options that would have no effect.

    Args:
        serve: whether a server is measured.
        own: parameters that only that measurement has.
        others: parameters that only the other one has.

    Raises:
        click.UsageError: such an option was given.
    """
    context = click.get_current_context()
    for name in others if serve else own:
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            option = f"--{name.replace('_', '-')}"
            raise click.UsageError(f"{option} has no effect with --serve" if serve else f"{option} requires --serve")


def bench_serving(
    onnx_file: Path,
    text_file: Path | None,
    threads: int | None,
    plot_file: Path | None,
    *,
    as_json: bool,
    quiet: bool,
    url: str | None,
    clients: tuple[int, ...],
    rate: tuple[float, ...],
    requests: int,
    prompt: int,
    answer: int,
    spread: float,
    max_batch: int,
    seed: int,
    api_key: str | None,
) -> None:
    """Measure a server under load and print the result."""
    if url is None:
        require_packages("llguidance", "prometheus_client", "pydantic", "starlette", "uvicorn", extra="serve")
    with stages(quiet=quiet) as progress:
        progress("start", 0, 0)
        import numpy as np

        from prosparse_export.artifact.integrity import check_model_path
        from prosparse_export.artifact.model_settings import require_tokenizer
        from prosparse_export.bench.serving import LoadOptions, launched, run_load
        from prosparse_export.bench.serving.render import as_text, plot
        from prosparse_export.text import default_text, read_text

        text = default_text() if text_file is None else read_text(text_file)
        check_model_path(onnx_file)
        ids = np.asarray(require_tokenizer(onnx_file.parent).encode(text, add_special_tokens=False).ids, np.int64)
        options = LoadOptions(clients, rate, requests, prompt, answer, spread, seed, api_key if url else None)
        with contextlib.ExitStack() as stack:
            if url is None:
                sizes = ["--max-batch", str(max_batch), *([] if threads is None else ["--threads", str(threads)])]
                url = stack.enter_context(launched(onnx_file, sizes))
            result = run_load(url, ids, options, progress)
    click.echo(json.dumps(result.to_dict(), indent=2) if as_json else as_text(result))
    if plot_file is not None:
        plot(result, plot_file)
