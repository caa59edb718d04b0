"""Write a random checkpoint of LLaMA's or OPT's shape with a given sparsity, shard by shard, in less than 2 GiB of RAM.

    python benchmarks/random_checkpoint.py llama-2-7b out/random-7b --sparsity 0.89
    python benchmarks/random_checkpoint.py tinyllama out/random-tiny-2 --layers 2
    python benchmarks/random_checkpoint.py opt-6.7b out/random-opt --sparsity 0.97 --dtype bf16

The activation is ReLU; random_weights.py says where the sparsity comes from. Every
layer's sparsity is measured on 128 random tokens and written to random_checkpoint.json. The tokenizer is the demo
model's, filled up to the vocabulary. Same seed, same bytes.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import torch
from random_weights import SHAPES, Shape, Weights, random_model
from safetensors.torch import save_file

from prosparse_export.cli.display import stages

DEMO = Path(__file__).parent.parent / "models" / "demo"
SHARD_BYTES = 512 << 20
DTYPES = {"f16": torch.float16, "bf16": torch.bfloat16, "f32": torch.float32}


class Shards:
    """Tensors collected into files of about `SHARD_BYTES`, and the index of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bytes = 0
        self._pending: dict[str, torch.Tensor] = {}
        self._files: list[list[str]] = []

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """Take one tensor; write a file if enough have come."""
        held = sum(t.nbytes for t in self._pending.values())
        if self._pending and held + tensor.nbytes > SHARD_BYTES:
            self._write()
        self._pending[name] = tensor
        self.bytes += tensor.nbytes

    def close(self) -> None:
        """Write what is left, give the files their names and write the index."""
        self._write()
        count = len(self._files)
        places = {}
        for number, names in enumerate(self._files):
            file = "model.safetensors" if count == 1 else f"model-{number + 1:05}-of-{count:05}.safetensors"
            (self.folder / f"{number}.part").rename(self.folder / file).chmod(0o644)
            places.update(dict.fromkeys(names, file))
        if count > 1:
            index = {"metadata": {"total_size": self.bytes}, "weight_map": places}
            _write_json(self.folder / "model.safetensors.index.json", index)

    def _write(self) -> None:
        save_file(self._pending, self.folder / f"{len(self._files)}.part", metadata={"format": "pt"})
        self._files.append(list(self._pending))
        self._pending = {}


def config(shape: Shape, dtype: str) -> dict[str, Any]:
    """Return config.json's contents."""
    common = {
        "hidden_size": shape.d_model,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "vocab_size": shape.vocabulary,
        "max_position_embeddings": shape.positions,
        "tie_word_embeddings": shape.tied,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 2,
        "torch_dtype": {"f16": "float16", "bf16": "bfloat16", "f32": "float32"}[dtype],
    }
    if shape.family == "opt":
        return {
            "architectures": ["OPTForCausalLM"],
            "model_type": "opt",
            "activation_function": "relu",
            "ffn_dim": shape.d_ff,
            "word_embed_proj_dim": shape.d_model,
            "do_layer_norm_before": True,
            **common,
        }
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "relu",
        "intermediate_size": shape.d_ff,
        "num_key_value_heads": shape.kv_heads,
        "rms_norm_eps": shape.eps,
        "rope_theta": shape.rope_theta,
        **common,
    }


def write_tokenizer(folder: Path, vocabulary: int) -> None:
    """Write the demo's tokenizer with made-up tokens up to ``vocabulary``, so that every id has a text."""
    tokenizer = json.loads((DEMO / "tokenizer.json").read_text(encoding="utf-8"))
    known = tokenizer["model"]["vocab"]
    for number in range(len(known), vocabulary):
        known[f"<{number}>"] = number
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")
    shutil.copyfile(DEMO / "tokenizer_config.json", folder / "tokenizer_config.json")


def _write_json(path: Path, document: dict[str, Any]) -> None:
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


@click.command(context_settings={"help_option_names": ["-h", "--help"]}, help=__doc__ and __doc__.split("\n")[0])
@click.argument("name", type=click.Choice(list(SHAPES)))
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--sparsity", type=click.FloatRange(0.01, 0.999), default=0.89, show_default=True)
@click.option("--layers", type=click.IntRange(min=1), help="Number of layers, if fewer than the shape has.")
@click.option("--dtype", type=click.Choice(list(DTYPES)), default="f16", show_default=True)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--overwrite", is_flag=True, help="Replace FOLDER.")
@click.option("-q", "--quiet", is_flag=True, help="Hide progress.")
def main(
    name: str,
    folder: Path,
    sparsity: float,
    layers: int | None,
    dtype: str,
    seed: int,
    threads: int,
    overwrite: bool,
    quiet: bool,
) -> None:
    """Parse, draw, write aside, rename."""
    shape = SHAPES[name] if layers is None else replace(SHAPES[name], layers=layers)
    if folder.exists() and not overwrite:
        raise click.ClickException(f"output: {folder}: already exists\nhint: choose another name or pass --overwrite")
    torch.set_num_threads(1)  # on some machines torch sums in another order with more; drawing takes the others
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".partial", dir=folder.parent))
    try:
        shards = Shards(staging)
        with stages(quiet=quiet) as progress:
            measured = random_model(
                shape,
                Weights(seed, DTYPES[dtype], threads),
                sparsity,
                shards.add,
                lambda layer: progress("layers", layer, shape.layers),
            )
            shards.close()
        _write_json(staging / "config.json", config(shape, dtype))
        write_tokenizer(staging, shape.vocabulary)
        _write_json(
            staging / "random_checkpoint.json",
            {"shape": name, "layers": shape.layers, "seed": seed, "dtype": dtype, "sparsity": measured},
        )
        staging.chmod(0o755)
        if folder.exists():
            shutil.rmtree(folder)
        staging.rename(folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    click.echo(
        f"{folder}: {shards.bytes / 1e9:.2f} GB, {shape.layers} layers, sparsity {sum(measured) / len(measured):.2%}"
        f" (layers {min(measured):.2%} to {max(measured):.2%})"
    )


if __name__ == "__main__":
    main()
