r"""Our server, llama-server, and onnxruntime-genai under the same load, alternating by round.

    python benchmarks/serving.py out/tl-i4/m.onnx --llama-server PATH --gguf out/engines/tl/Q4_0.gguf \
        --genai out/engines/tl/ort-i4 --clients 1 --clients 4 --clients 16

Pass several artifacts to compare them; each is named after its folder. Servers start once and run throughout.
Prompts and answers have fixed lengths. To build llama-server from the sources in llama-cpp-python's sdist:

    cmake -S vendor/llama.cpp -B build -DLLAMA_USE_PREBUILT_UI=OFF -DLLAMA_OPENSSL=OFF
    cmake --build build --target llama-server
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import click
import httpx2
import numpy as np
from common import help_text, machine, paired_ratio

from prosparse_export.artifact.model_settings import require_tokenizer
from prosparse_export.bench.serving import LoadOptions, launched, run_load
from prosparse_export.bench.serving.result import Point
from prosparse_export.text import default_text

_SECONDS = 120  # until a server must be ready


@contextlib.contextmanager
def started(command: list[str], port: int, environment: dict[str, str] | None = None) -> Iterator[str]:
    """Yield the URL of a server that ``command`` starts on ``port``."""
    url = f"http://127.0.0.1:{port}/v1"
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, **(environment or {})}
    )
    try:
        for _ in range(_SECONDS):
            with contextlib.suppress(httpx2.HTTPError):
                if httpx2.get(f"{url}/models").status_code == 200:
                    break
            if process.poll() is not None:
                raise click.ClickException(f"server exited: {' '.join(command)}")
            time.sleep(1)
        else:
            raise click.ClickException(f"server not ready after {_SECONDS} s: {' '.join(command)}")
        yield url
    finally:
        process.terminate()
        process.wait(30)


def free_port() -> int:
    """Return a port that nothing listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@click.command(help=help_text(__doc__))
@click.argument("onnx_files", metavar="ONNX_FILE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--llama-server", type=click.Path(exists=True, path_type=Path))
@click.option("--gguf", type=click.Path(exists=True, path_type=Path))
@click.option("--genai", type=click.Path(exists=True, path_type=Path), help="Folder with genai_config.json.")
@click.option("--llama-option", multiple=True, help="Extra llama-server option. Repeatable.")
@click.option("--clients", type=int, multiple=True, default=(1, 4, 16), show_default=True)
@click.option("--per-client", type=int, default=2, show_default=True, help="Requests of each client per round.")
@click.option("--rounds", type=int, default=3, show_default=True)
@click.option("--prompt", type=int, default=128, show_default=True)
@click.option("--answer", type=int, default=64, show_default=True)
@click.option("--threads", type=int, default=2, show_default=True)
@click.option("--json", "json_file", type=click.Path(path_type=Path))
def main(
    onnx_files: tuple[Path, ...],
    llama_server: Path | None,
    gguf: Path | None,
    genai: Path | None,
    llama_option: tuple[str, ...],
    clients: tuple[int, ...],
    per_client: int,
    rounds: int,
    prompt: int,
    answer: int,
    threads: int,
    json_file: Path | None,
) -> None:
    """Run the benchmark."""
    rows = max(clients)
    ids = np.asarray(require_tokenizer(onnx_files[0].parent).encode(default_text()).ids, np.int64)
    with contextlib.ExitStack() as stack:
        options = ["--threads", str(threads), "--max-batch", str(rows), "--context", "512", "--prefix-cache", "0"]
        names = ["ours"] if len(onnx_files) == 1 else [file.parent.name for file in onnx_files]
        urls = {
            name: stack.enter_context(launched(file, options)) for name, file in zip(names, onnx_files, strict=True)
        }
        if llama_server and gguf:
            port = free_port()
            command = [str(llama_server), "-m", str(gguf), "--port", str(port), "-t", str(threads), "-np", str(rows)]
            command += ["-c", str(512 * rows), "--no-cache-prompt", "--host", "127.0.0.1", *llama_option]
            urls["llama.cpp"] = stack.enter_context(started(command, port))
        if genai:
            port = free_port()
            script = str(Path(__file__).parent / "engines" / "genai_server.py")
            command = [sys.executable, script, str(genai), str(port), "--threads", str(threads)]
            urls["genai"] = stack.enter_context(started(command, port))
        points: dict[tuple[str, int], list[Point]] = {}
        for count in clients:
            for number in range(rounds):
                for name, url in urls.items():
                    load = LoadOptions((count,), (), count * per_client, prompt, answer, 0.0, number)
                    run = run_load(url, ids, load).points
                    points.setdefault((name, count), []).extend(run)
                    rate = run[0].tokens_per_second
                    click.echo(f"round {number + 1}: {count} clients, {name}: {rate:.1f} tokens/s", err=True)
    click.echo(json.dumps(machine()))
    show(points, names, [name for name in urls if name not in names], clients)
    if json_file is not None:
        found = {f"{name}, {count}": [vars(p) for p in run] for (name, count), run in points.items()}
        json_file.write_text(json.dumps(found, default=vars, indent=2))


def show(
    points: dict[tuple[str, int], list[Point]], ours: list[str], peers: list[str], clients: tuple[int, ...]
) -> None:
    """Print medians over rounds, and the ratio of ours to each peer, paired by round."""
    for count in clients:
        rates = {name: [point.tokens_per_second for point in points[name, count]] for name in (*ours, *peers)}
        for name in rates:
            run = points[name, count]
            first = 1e3 * np.quantile([seconds for point in run for seconds in point.first_seconds], 0.95)
            between = 1e3 * np.median([point.between_tokens.p95 for point in run])
            line = f"{count:3} clients {name:12} {np.median(rates[name]):7.1f} tokens/s"
            click.echo(f"{line}, p95: TTFT {first:6.0f} ms, ITL {between:5.0f} ms")
        for name in ours:
            for peer in peers:
                click.echo(f"{count:3} clients {name} / {peer}: {paired_ratio(rates[name], rates[peer])}")


if __name__ == "__main__":
    main()
