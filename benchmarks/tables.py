"""Write the tables of docs/performance from benchmarks/results, between their markers.

python benchmarks/tables.py            # after a new measurement
python benchmarks/tables.py --check    # exit 1 if a page is not current
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from common import help_text
from measurements import Workload, read, sparsity_sweep, workloads

PAGES = Path(__file__).parent.parent / "docs" / "performance"
ENGINES = ("dense baseline", "onnxruntime", "onnxruntime-genai", "llama.cpp", "OpenVINO")
MODELS = {
    "llama-2-7b": "Llama-2-7B",
    "tinyllama": "TinyLlama",
    "opt-6.7b": "OPT-6.7B",
    "smollm2": "SmolLM2",
    "smollm2-135m": "SmolLM2",
}
LAYERS = {"llama-2-7b": 32, "tinyllama": 22, "smollm2-135m": 30}
WEIGHTS = ("f32", "f16", "bf16", "i8", "i4i8", "i4", "nl4i8", "nl4")
_MARK = re.compile(r"<!-- table: (\S+) (\S+) -->\n.*?<!-- end of table -->", re.DOTALL)

Run = Mapping[str, Any]


@dataclass(frozen=True)
class Table:
    """What a table shows: its runs and columns.

    Attributes:
        suites: of the measurement files.
        wanted: which runs.
        label: names a row.
        own: fields of our run that get a column, with their headers.
        head: of the labels' column.
        engines: that get a column, if they were measured.
        brief: medians without quartiles, and no commands below the table.
    """

    suites: tuple[str, ...]
    wanted: Callable[[Run], bool]
    label: Callable[[Run], str]
    own: Mapping[str, str]
    head: str = "workload"
    engines: tuple[str, ...] = ENGINES
    brief: bool = False


def _is_cut(run: Run) -> bool:
    return bool(run.get("layers", LAYERS.get(run["model"])) != LAYERS.get(run["model"]))


def _model(run: Run) -> str:
    name = MODELS.get(run["model"], run["model"])
    return f"{name}, {run['layers']} layers" if _is_cut(run) else name


def _threads(run: Run) -> str:
    return f"{run['threads']} thread{'s' if run['threads'] > 1 else ''}"


def _weights(run: Run) -> str:
    level = f" at level {run['accuracy_level']}" if "accuracy_level" in run else ""
    return run["weights"] + level + (", 8-bit cache" if "kv_cache" in run else "")


def _phase(run: Run) -> str:
    return "decode" if run["phase"] == "decode" else f"prefill of {run['context']}"


SPEED = {"tokens_per_second": "ours, tokens/s"}
TIME = {"milliseconds": "ours, ms"}
SUMMARY = {
    ("llama-2-7b", "i4", "decode", 128),
    ("llama-2-7b", "i4", "prefill", 128),
    ("llama-2-7b", "i8", "decode", 128),
    ("tinyllama", "i4", "decode", 128),
    ("tinyllama", "i4", "prefill", 128),
    ("tinyllama", "i4", "prefill", 512),
    ("tinyllama", "i8", "decode", 128),
    ("tinyllama", "f16", "decode", 128),
}
TABLES = {
    "summary": Table(
        ("engines", "bench"),
        lambda run: (
            (run["model"], run["weights"], run["phase"], run["context"]) in SUMMARY
            and run["threads"] == 2
            and not _is_cut(run)
        ),
        lambda run: f"{_model(run)}, {_weights(run)}, {_phase(run)}",
        SPEED,
        engines=tuple(engine for engine in ENGINES if engine != "onnxruntime"),
        brief=True,
    ),
    "models-decode": Table(
        ("engines",),
        lambda run: run["phase"] == "decode",
        lambda run: f"{_model(run)}, {_weights(run)}, {_threads(run)}",
        SPEED,
        "model, weights",
    ),
    "models-prefill": Table(
        ("engines",),
        lambda run: run["phase"] == "prefill",
        lambda run: f"{_model(run)}, {_weights(run)}, {run['context']} tokens, {_threads(run)}",
        SPEED,
        "model, weights, prompt",
    ),
    "bench": Table(("bench",), lambda run: True, lambda run: f"{_model(run)}, {run['weights']}, {_phase(run)}", SPEED),
    "ffn-decode": Table(
        ("ffn",),
        lambda run: run["model"] == "llama-2-7b" and run["tokens"] == 1 and run["sparsity"] == 0.89,
        lambda run: f"{run['weights']}, {_threads(run)}",
        TIME | {"gigabytes_per_second": "ours, GB/s"},
        "weights",
    ),
    "ffn-shapes": Table(
        ("ffn",),
        lambda run: run["model"] != "llama-2-7b" and run["tokens"] == 1 and run["sparsity"] == 0.89,
        lambda run: f"{_model(run)}, {run['weights']}",
        TIME,
        "FFN of",
    ),
    "ffn-tokens": Table(
        ("ffn",),
        lambda run: run["tokens"] > 1,
        lambda run: f"{_model(run)}, {_weights(run)}, {run['tokens']} tokens, {run['sparsity']:.0%} sparse",
        TIME,
        "FFN of, weights",
    ),
    "linear": Table(
        ("linear",),
        lambda run: True,
        lambda run: f"{run['model']}, {run['weights']}, {_threads(run)}",
        TIME,
        "projection",
    ),
}


def _order(row: Workload) -> tuple[Any, ...]:
    key = row.key
    model = list(MODELS).index(key["model"]) if key["model"] in MODELS else len(MODELS)
    size = key.get("context", key.get("tokens", 0))
    return (
        model,
        str(key["model"]),
        WEIGHTS.index(key["weights"]),
        key.get("phase", ""),
        size,
        key["threads"],
        key.get("accuracy_level", 0),
        key.get("kv_cache", ""),
        -key.get("sparsity", 0.0),
    )


def _ratio(run: Run | None, *, brief: bool = False) -> str:
    if run is None:
        return "-"
    ratio = run["ratio"]
    text = f"**{ratio['median']:.2f}**" if ratio["median"] < 1 else f"{ratio['median']:.2f}"
    return f"{text} [{ratio['q1']:.2f}, {ratio['q3']:.2f}]" if "q1" in ratio and not brief else text


def _own(run: Run | None, field: str) -> str:
    if run is None or field not in run:
        return "-"
    value = run[field]["median"] if isinstance(run[field], dict) else run[field]
    digits = 0 if value >= 100 else 1 if value >= 10 else 2 if value >= 1 else 3
    return f"{value:,.{digits}f}"


def _grid(rows: list[list[str]]) -> str:
    head, *body = rows
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def render(name: str, machine: str) -> str:
    """Return the table ``name`` of ``machine`` as Markdown."""
    results = read(machine)
    if name == "ffn-sparsity":
        return _by_sparsity(results)
    if name == "memory":
        return _memory(results)
    table = TABLES[name]
    rows = sorted(workloads(results, table.suites, table.wanted), key=_order)
    engines = [engine for engine in table.engines if any(engine in row.engines for row in rows)]
    own = {
        field: head for field, head in table.own.items() if any(field in row.engines.get("ours", {}) for row in rows)
    }
    grid = [[table.head, *own.values(), *engines]]
    for row in rows:
        ours = row.engines.get("ours")
        cells = [_own(ours, field) for field in own] + [
            _ratio(row.engines.get(engine), brief=table.brief) for engine in engines
        ]
        grid.append([table.label(row.key), *cells])
    return _grid(grid) + ("" if table.brief else _commands(rows))


def _commands(rows: list[Workload]) -> str:
    commands = list(dict.fromkeys(command for row in rows for command in row.commands))
    return "\n\n```console\n" + "\n".join(f"$ {command}" for command in commands) + "\n```"


def _by_sparsity(results: Mapping[str, Any]) -> str:
    """Speedup over the dense baseline, by sparsity and weights, with the limit set by bytes read."""
    session = sparsity_sweep(results)
    runs = [run for run in session["runs"] if run["engine"] == "dense baseline"]
    shares = sorted({run["sparsity"] for run in runs})
    grid = [["activation sparsity", *(f"{share:.0%}" for share in shares)]]
    grid.append(["limit by bytes", *(f"{3 / (1 + 2 * (1 - share)):.2f}" for share in shares)])
    for weights in dict.fromkeys(run["weights"] for run in runs):
        by_share = {run["sparsity"]: run for run in runs if run["weights"] == weights}
        grid.append([weights, *(_ratio(by_share.get(share)) for share in shares)])
    return f"{_grid(grid)}\n\n```console\n$ {session['command']}\n```"


def _memory(results: Mapping[str, Any]) -> str:
    """Files and resident memory by model, weights and engine."""
    rows = sorted(workloads(results, ("memory",)), key=_order)
    engines = list(dict.fromkeys(engine for row in rows for engine in row.engines))
    grid = [["model, weights: files; resident, MB", *engines]]
    for row in rows:
        cells = []
        for engine in engines:
            run = row.engines.get(engine)
            cells.append(f"{run['file_megabytes']:,}; {run['resident_megabytes']:,}" if run else "-")
        grid.append([f"{_model(row.key)}, {row.key['weights']}", *cells])
    return _grid(grid)


def updated(text: str) -> str:
    """Return a page's ``text`` with its tables written anew."""

    def replace(match: re.Match[str]) -> str:
        name, machine = match[1], match[2]
        return f"<!-- table: {name} {machine} -->\n\n{render(name, machine)}\n\n<!-- end of table -->"

    return _MARK.sub(replace, text)


@click.command(context_settings={"help_option_names": ["-h", "--help"]}, help=help_text(__doc__))
@click.option("--check", is_flag=True, help="Write nothing; exit 1 if a page is not current.")
def main(check: bool) -> None:
    """Parse and write."""
    stale = []
    for page in sorted(PAGES.glob("*.md")):
        before = page.read_text(encoding="utf-8")
        after = updated(before)
        if after != before:
            stale.append(page.name)
            if not check:
                page.write_text(after, encoding="utf-8")
    click.echo("\n".join(f"{'not current' if check else 'written'}: {name}" for name in stale), err=check)
    sys.exit(1 if check and stale else 0)


if __name__ == "__main__":
    main()
