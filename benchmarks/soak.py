"""Soak test: a server under load, with clients that disconnect mid-stream and invalid requests.

    python benchmarks/soak.py out/demo/demo.onnx --minutes 10 --clients 16
    python benchmarks/soak.py out/demo/demo.onnx --minutes 1 --url http://127.0.0.1:8000   # a running server

Every output is compared with `SparseModel.generate` for the same prompt and seed. Prints requests by outcome, with the
number of mismatches, and the server's resident memory: after the first minute, peak, and final, and per-minute medians.
"""

from __future__ import annotations

import asyncio
import collections
import json
import math
import random
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import click
import httpx2
from common import help_text

from prosparse_export.runtime.model import SparseModel, load
from prosparse_export.runtime.sampling import Sampling
from prosparse_export.text import default_text

BAD = (
    (b"{", 400),
    (b'{"model": "NAME", "prompt": "A", "unknown": 1}', 400),
    (b'{"model": "NAME", "prompt": "A", "max_tokens": -1}', 400),
    (b'{"model": "NAME", "prompt": [99999999]}', 400),
    (b'{"model": "other", "prompt": "A"}', 404),
    (b'{"model": "NAME", "prompt": "' + b"word " * 20000 + b'"}', 400),
    (b'{"model": "NAME", "prompt": "' + b"A" * 5_000_000 + b'"}', 413),
)


@dataclass(frozen=True)
class Case:
    """A request and its expected output."""

    body: dict[str, object]
    text: str


def cases(model: SparseModel, count: int) -> list[Case]:
    """Return requests, half of them sampled, with the outputs of ``generate``."""
    rng, source, found = random.Random(0), default_text(), []
    for number in range(count):
        begin = rng.randrange(len(source) - 1000)
        prompt = source[begin : begin + rng.randrange(10, 900)]
        sampling = Sampling(0.8, top_p=0.95, seed=number) if number % 2 else Sampling()
        tokens = rng.randrange(4, 96)
        body = {"prompt": prompt, "max_tokens": tokens, "temperature": sampling.temperature, "top_p": sampling.top_p}
        if sampling.seed is not None:
            body["seed"] = sampling.seed
        found.append(Case(body, model.generate(prompt, max_new_tokens=tokens, sampling=sampling)))
    return found


async def client(
    http: httpx2.AsyncClient, name: str, work: list[Case], seed: int, end: float, seen: collections.Counter[str]
) -> None:
    """Send requests until ``end``: a tenth disconnects mid-stream, a tenth is invalid."""
    rng = random.Random(seed)
    while time.monotonic() < end:
        kind = rng.random()
        if kind < 0.1:
            body, status = rng.choice(BAD)
            answer = await http.post("/v1/completions", content=body.replace(b"NAME", name.encode()))
            right = answer.status_code == status and "Traceback" not in answer.text and "error" in answer.json()
            seen["invalid request, expected error" if right else f"invalid request, got {answer.status_code}"] += 1
            continue
        case = rng.choice(work)
        stream = kind < 0.6
        async with http.stream(
            "POST", "/v1/completions", json={**case.body, "model": name, "stream": stream}
        ) as answer:
            if answer.status_code != 200:
                seen[f"status {answer.status_code}"] += 1
                continue
            if kind < 0.2:
                left = rng.randrange(1, 5)
                async for _ in answer.aiter_lines():
                    left -= 1
                    if left == 0:
                        break
                seen["disconnected mid-stream"] += 1
                continue
            text = await _text(answer, stream)
        seen["matches generate" if text == case.text else "mismatches"] += 1


async def _text(answer: httpx2.Response, stream: bool) -> str:
    if not stream:
        return str(json.loads(await answer.aread())["choices"][0]["text"])
    chunks = [line.removeprefix("data: ") async for line in answer.aiter_lines() if line.startswith("data: {")]
    return "".join(choice["text"] for chunk in chunks for choice in json.loads(chunk)["choices"])


def resident(process: int) -> float:
    """Return a process's resident memory in MB."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))


async def run(url: str, process: int | None, work: list[Case], clients: int, minutes: float) -> None:
    """Load the server and print what was seen."""
    seen: collections.Counter[str] = collections.Counter()
    memory: list[tuple[float, float]] = []
    began = time.monotonic()
    limits = httpx2.Limits(max_connections=None)
    async with httpx2.AsyncClient(base_url=url, timeout=900, limits=limits) as http:
        name = (await http.get("/v1/models")).json()["data"][0]["id"]
        end = began + 60 * minutes
        tasks = [asyncio.create_task(client(http, name, work, seed, end, seen)) for seed in range(clients)]
        while not all(task.done() for task in tasks):
            memory.append((time.monotonic() - began, resident(process) if process else math.nan))
            await asyncio.wait(tasks, timeout=5)
        for task in tasks:
            task.result()
        for _ in range(100):
            state = (await http.get("/health")).json()
            if state["running"] == state["waiting"] == 0:
                break
            await asyncio.sleep(0.1)
    for outcome, count in sorted(seen.items()):
        click.echo(f"{count:8} {outcome}")
    click.echo(f"batch and queue at the end: {state}")
    if process:
        show_memory(memory)


def show_memory(memory: list[tuple[float, float]]) -> None:
    """Print the median of each minute, and how much it grows after the first: single samples hold passing bodies."""
    count = int(memory[-1][0] // 60) + 1
    by_minute = [[size for seconds, size in memory if seconds // 60 == minute] for minute in range(count)]
    medians = [statistics.median(sizes) for sizes in by_minute if sizes]
    click.echo(f"resident MB, per-minute medians: {', '.join(f'{size:.1f}' for size in medians)}")
    after = [size for seconds, size in memory if seconds >= 60] or [memory[-1][1]]
    click.echo(
        f"resident MB: {after[0]:.1f} after the first minute, {max(after):.1f} peak "
        f"({max(after) / after[0] - 1:+.2%}), {after[-1]:.1f} final"
    )
    later = medians[1:-1]  # whole minutes after the first
    if len(later) > 1:
        click.echo(f"medians of minutes 2 to {len(later) + 1}: {max(later) / later[0] - 1:+.2%} peak")


@click.command(help=help_text(__doc__))
@click.argument("onnx_file", type=click.Path(path_type=Path))
@click.option("--minutes", type=float, default=10, show_default=True)
@click.option("--clients", type=int, default=16, show_default=True)
@click.option("--cases", "count", type=int, default=200, show_default=True, help="Distinct requests.")
@click.option("--threads", type=int, default=1, show_default=True)
@click.option("--url", help="URL of a running server with the same model; its memory is not tracked.")
def main(onnx_file: Path, minutes: float, clients: int, count: int, threads: int, url: str | None) -> None:
    """Run the benchmark."""
    work = cases(load(onnx_file, threads=threads), count)
    if url is not None:
        asyncio.run(run(url.rstrip("/").removesuffix("/v1"), None, work, clients, minutes))
        return
    command = [sys.executable, "-m", "prosparse_export", "serve", str(onnx_file), "--port", "0"]
    command += ["--threads", str(threads), "--max-batch", "8", "--prefix-cache", "16"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        click.echo(process.stderr.readline().strip())
        line = process.stderr.readline().strip()
        asyncio.run(run(line.rpartition(" ")[2].removesuffix("/v1"), process.pid, work, clients, minutes))
    finally:
        process.terminate()
        rest = process.stderr.read()
        click.echo(f"exit code {process.wait(60)}; tracebacks in the log: {rest.count('Traceback')}")


if __name__ == "__main__":
    main()
