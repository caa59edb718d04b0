"""Trace an encoder-decoder (T5, M2M-100) to two ONNX graphs."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
import torch
from torch import nn
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput

from prosparse_export.errors import ProSparseError
from prosparse_export.export.trace import OPSET
from prosparse_export.export.tracing import tracing
from prosparse_models import cache_argument, cache_of

__all__ = ["trace_encoder_decoder"]

_SCOPES = "pkg.torch.onnx.name_scopes"
_ROLES = ("decoder.key", "decoder.value", "encoder.key", "encoder.value")
_BATCH, _SOURCE, _TARGET, _PAST = 2, 5, 3, 4  # all different, and not 0 or 1, which torch.export specializes


class _Encoder(nn.Module):
    """The encoder, and the keys and values of the decoder's cross-attention."""

    def __init__(self, inner: PreTrainedModel) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> tuple[torch.Tensor, ...]:
        cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        result = self.inner(
            input_ids=input_ids,
            attention_mask=attention_mask,
            decoder_input_ids=input_ids[:, :1],  # required; its logits are not used
            **cache_argument(self.inner, cache),
            use_cache=True,
        )
        layers = cache_of(result).cross_attention_cache.layers
        return (result.encoder_last_hidden_state, *(t for layer in layers for t in (layer.keys, layer.values)))


class _Decoder(nn.Module):
    """The decoder on tokens, its own KV cache, and the keys and values from `_Encoder`."""

    def __init__(self, inner: PreTrainedModel) -> None:
        super().__init__()
        self.inner = inner
        self.width = int(inner.config.hidden_size)

    def forward(
        self, input_ids: torch.Tensor, encoder_attention_mask: torch.Tensor, past: list[torch.Tensor]
    ) -> tuple[torch.Tensor, ...]:
        own, cross = DynamicCache(), DynamicCache()
        layers = len(past) // len(_ROLES)
        for layer in range(layers):
            keys, values, cross_keys, cross_values = past[len(_ROLES) * layer : len(_ROLES) * (layer + 1)]
            own.update(keys, values, layer)
            cross.update(cross_keys, cross_values, layer)
        cache = EncoderDecoderCache(own, cross)
        cache.is_updated = dict.fromkeys(range(layers), True)
        states = (
            encoder_attention_mask[..., None].to(past[0].dtype).expand(-1, -1, self.width)
        )  # only its shape matters
        result = self.inner(
            attention_mask=encoder_attention_mask,
            encoder_outputs=BaseModelOutput(last_hidden_state=states),
            decoder_input_ids=input_ids,
            **cache_argument(self.inner, cache),
            use_cache=True,
        )
        layers_after = cache_of(result).self_attention_cache.layers
        return (result.logits, *(t for layer in layers_after for t in (layer.keys, layer.values)))


@torch.no_grad()
def trace_encoder_decoder(model: PreTrainedModel) -> tuple[ir.Model, ir.Model]:
    """Return the graphs of encoder and decoder, with dynamic batch size and lengths.

    The encoder outputs last_hidden_state and, for cross-attention, present.N.encoder.key/value. The decoder takes those
    and past_key_values.N.decoder.key/value, which may be empty, so that one graph serves the first token and all
    others. Names are optimum's for decoder_with_past_model.onnx.

    Raises:
        ProSparseError: the model has experts, or torch.export cannot trace it.
    """
    experts = getattr(model.config, "num_experts", None) or getattr(model.config, "num_local_experts", None) or 1
    if experts > 1:  # transformers loops over the chosen experts, which depends on the data
        raise ProSparseError(
            f"export: {type(model).__name__}: expected one FFN per layer, got {experts} experts: torch.export cannot "
            "trace routing at run time",
            hint="use a model of the family without experts",
        )
    dim = torch.export.Dim.DYNAMIC
    vocabulary = int(model.config.vocab_size)
    ids = torch.arange(_BATCH * _SOURCE).reshape(_BATCH, -1) % vocabulary
    mask = torch.ones_like(ids)
    mask[0, 0] = 0
    before = model.config._attn_implementation
    try:
        model.set_attn_implementation("eager")  # its reshapes keep sizes dynamic
        with tracing():
            encoder = _export(_Encoder(model), (ids, mask), ({0: dim, 1: dim}, {0: dim, 1: dim}))
            _, *cross = _Encoder(model)(ids, mask)
            past: list[torch.Tensor] = []
            for keys, values in zip(cross[::2], cross[1::2], strict=True):
                own = torch.randn(_BATCH, keys.shape[1], _PAST, keys.shape[3])
                past += [own, own.clone(), keys, values]
            tokens = ids[:, :_TARGET]
            sizes: tuple[Any, ...] = ({0: dim, 1: dim}, {0: dim, 1: dim}, [{0: dim, 2: dim}] * len(past))
            decoder = _export(_Decoder(model), (tokens, mask, past), sizes)
    except (RuntimeError, TypeError, ValueError, NotImplementedError, AttributeError, KeyError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ProSparseError(
            f"export: {type(model).__name__}: torch.onnx.export failed: {type(error).__name__}: {reason}",
            hint="check that this is an encoder-decoder with a KV cache, such as T5 or M2M-100",
        ) from error
    finally:
        model.set_attn_implementation(before)
    _name_interfaces(encoder.graph, decoder.graph, layers=len(past) // len(_ROLES))
    return encoder, decoder


def _name_interfaces(encoder: ir.Graph, decoder: ir.Graph, *, layers: int) -> None:
    cached = [f"{layer}.{role}" for layer in range(layers) for role in _ROLES]
    _name(
        encoder,
        {"input_ids": ["batch_size", "sequence_length"], "attention_mask": ["batch_size", "sequence_length"]},
        ["last_hidden_state", *(f"present.{name}" for name in cached if "encoder" in name)],
    )
    lengths = {"decoder": "past_decoder_sequence_length", "encoder": "encoder_sequence_length"}
    _name(
        decoder,
        {
            "input_ids": ["batch_size", "sequence_length"],
            "encoder_attention_mask": ["batch_size", "encoder_sequence_length"],
            **{f"past_key_values.{n}": ["batch_size", None, lengths[n.split(".")[1]], None] for n in cached},
        },
        ["logits", *(f"present.{name}" for name in cached if "decoder" in name)],
    )


def _export(module: nn.Module, inputs: tuple[Any, ...], sizes: tuple[Any, ...]) -> ir.Model:
    program = torch.onnx.export(
        module.eval(), inputs, dynamo=True, dynamic_shapes=sizes, opset_version=OPSET, verbose=False
    )
    assert program is not None
    model: ir.Model = program.model
    for node in model.graph:  # module paths are relative to the model
        if (scopes := node.metadata_props.get(_SCOPES)) is not None:
            node.metadata_props[_SCOPES] = scopes.replace("'inner.", "'")
    for value in list(model.graph.initializers.values()):
        value.name = (value.name or "").removeprefix("inner.")
    return model


def _name(graph: ir.Graph, inputs: dict[str, list[str | None]], outputs: list[str]) -> None:
    """Name inputs, outputs and dimensions, in order; None leaves a dimension as it is."""
    names: dict[str, str] = {}
    for value, (name, dims) in zip(graph.inputs, inputs.items(), strict=True):
        assert value.shape is not None
        for dim, wanted in zip(value.shape, dims, strict=True):
            if isinstance(dim, ir.SymbolicDim) and dim.value is not None and wanted is not None:
                names[dim.value] = wanted
        value.name = name
    for value, name in zip(graph.outputs, outputs, strict=True):
        value.name = name
    for value in [*graph.inputs, *(output for node in graph for output in node.outputs)]:
        if value.shape is not None:
            value.shape = ir.Shape([_renamed(dim, names) for dim in value.shape])


def _renamed(dim: int | ir.SymbolicDim, names: dict[str, str]) -> int | str | None:
    if isinstance(dim, int):
        return dim
    for old in sorted(names, key=len, reverse=True):
        if dim.value is not None and dim.value == old:
            return names[old]
    own = names and dim.value and all(part.strip() in names for part in dim.value.split("+"))
    if own and dim.value is not None:
        return " + ".join(sorted(names[part.strip()] for part in dim.value.split("+")))
    return dim.value
