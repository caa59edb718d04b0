"""genai_config.json: what it says of a decoder, and which graphs it cannot describe."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
import pytest

from prosparse_export.artifact.genai_config import genai_config

CONFIG = {"max_position_embeddings": 64, "num_attention_heads": 4, "hidden_size": 32, "vocab_size": 99}


def graph(*kv_heads: int | str, positions: bool = True) -> ir.Graph:
    """A decoder's inputs: a KV cache with the given heads per layer."""
    names = ["input_ids", "attention_mask", *(["position_ids"] if positions else [])]
    inputs = [ir.Value(name=name) for name in names]
    for layer, heads in enumerate(kv_heads):
        for kind in ("key", "value"):
            shape = ir.Shape(["batch", heads, "past", 8])
            inputs.append(ir.Value(name=f"past_key_values.{layer}.{kind}", shape=shape))
    return ir.Graph(inputs, [], nodes=[])


def described(
    graph: ir.Graph, config: dict[str, Any], generation: dict[str, Any] | None = None, library: str | None = None
) -> dict[str, Any] | None:
    return genai_config(graph, "m.onnx", config, generation or {}, library=library, in_place=True)


def test_a_decoder() -> None:
    found = described(graph(2, 2, 2), {**CONFIG, "eos_token_id": 2}, {"top_k": 5, "do_sample": True}, "ops.so")
    assert found is not None
    decoder = found["model"]["decoder"]
    assert decoder["filename"] == "m.onnx"
    assert decoder["session_options"]["custom_ops_library"] == "ops.so"
    sizes = ("num_hidden_layers", "num_key_value_heads", "head_size", "num_attention_heads", "hidden_size")
    assert [decoder[name] for name in sizes] == [3, 2, 8, 4, 32]
    assert decoder["inputs"]["position_ids"] == "position_ids"
    assert decoder["outputs"]["logits"] == "logits"
    assert found["model"]["context_length"] == found["search"]["max_length"] == 64
    assert found["search"]["past_present_share_buffer"]
    assert (found["search"]["top_k"], found["search"]["do_sample"]) == (5, True)
    assert "temperature" not in found["search"]


def test_without_library_and_positions() -> None:
    found = described(graph(2, positions=False), CONFIG)
    assert found is not None
    assert "custom_ops_library" not in found["model"]["decoder"]["session_options"]
    assert "position_ids" not in found["model"]["decoder"]["inputs"]


@pytest.mark.parametrize(
    ("config", "generation", "tokens"),
    [
        ({"eos_token_id": 2}, {}, {"eos_token_id": 2, "pad_token_id": 2}),
        ({"eos_token_id": 2}, {"eos_token_id": [3, 4]}, {"eos_token_id": [3, 4], "pad_token_id": 3}),
        ({"eos_token_id": 2, "pad_token_id": 0}, {}, {"eos_token_id": 2, "pad_token_id": 0}),
        ({"bos_token_id": 1}, {}, {"bos_token_id": 1}),
        ({"bos_token_id": 1}, {"bos_token_id": 5}, {"bos_token_id": 5}),
    ],
)
def test_special_tokens(config: dict[str, Any], generation: dict[str, Any], tokens: dict[str, Any]) -> None:
    for composed in ({**CONFIG, **config}, {"text_config": {**CONFIG, **config}}):
        found = described(graph(2), composed, generation)
        assert found is not None
        assert {name: value for name, value in found["model"].items() if name.endswith("token_id")} == tokens


@pytest.mark.parametrize("heads", [(), (2, 3), ("heads",)], ids=["no cache", "layers differ", "dynamic heads"])
def test_graphs_that_genai_cannot_run(heads: tuple[int | str, ...]) -> None:
    assert described(graph(*heads), CONFIG) is None


@pytest.mark.parametrize("missing", ["max_position_embeddings", "num_attention_heads"])
def test_incomplete_config(missing: str) -> None:
    assert described(graph(2), {name: value for name, value in CONFIG.items() if name != missing}) is None
