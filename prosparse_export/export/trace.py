"""Trace a PyTorch model to an ONNX graph with transformers' exporter."""

from __future__ import annotations

import contextlib
import io

import onnx_ir as ir
import torch
from transformers import DynamicCache, PreTrainedModel
from transformers.exporters import OnnxConfig, OnnxExporter

from prosparse_export.errors import ProSparseError
from prosparse_export.quiet import quiet

__all__ = ["OPSET", "trace"]

OPSET = 20
"""ai.onnx opset of artifacts: the newest that onnxscript 0.7 converts to; onnxruntime 1.18 supports opset 21."""

# Example sizes: all different, and not 0 or 1, which torch.export specializes.
_BATCH, _SEQUENCE, _PAST = 2, 3, 4


@torch.no_grad()
def trace(model: PreTrainedModel) -> ir.Model:
    """Return the graph of ``model`` with a KV cache and dynamic batch size, sequence length and past length.

    A model without lm_head becomes a graph from input_ids and attention_mask to hidden states, without a KV cache. The
    exporter's own fusions are disabled: its GroupQueryAttention requires batch size 1, and its packed projections hide
    the FFN (docs/architecture.md).

    Raises:
        ProSparseError: the exporter cannot convert the model.
    """
    try:
        with quiet(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            inputs = _inputs(model) if model.get_output_embeddings() is not None else _bare_inputs(model)
            exported = OnnxExporter().export(model, inputs, OnnxConfig(dynamic=True, opset_version=OPSET))
    except (RuntimeError, TypeError, ValueError, NotImplementedError, AttributeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ProSparseError(
            f"export: {type(model).__name__}: transformers' ONNX exporter failed: {type(error).__name__}: {reason}",
            hint="check that this architecture is a decoder or an encoder that torch.export can trace",
        ) from error
    program = getattr(exported, "program", exported)  # transformers 5.20 returns torch's ONNXProgram itself
    return program if isinstance(program, ir.Model) else program.model


def _inputs(model: PreTrainedModel) -> dict[str, object]:
    vocabulary = int(model.config.get_text_config().vocab_size)
    ids = torch.arange(_BATCH * (_PAST + _SEQUENCE)).reshape(_BATCH, -1) % vocabulary
    mask = torch.ones(_BATCH, _PAST + _SEQUENCE, dtype=torch.long)
    mask[0, 0] = 0
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    past = model(
        input_ids=ids[:, :_PAST],
        attention_mask=mask[:, :_PAST],
        position_ids=positions[:, :_PAST],
        past_key_values=DynamicCache(),  # full length, even where a sliding window attends to part of it
        use_cache=True,
    ).past_key_values
    return {
        "input_ids": ids[:, _PAST:],
        "attention_mask": mask,
        "position_ids": positions[:, _PAST:],
        "past_key_values": past,
    }


def _bare_inputs(model: PreTrainedModel) -> dict[str, object]:
    model.config.use_cache = False
    ids = torch.arange(_BATCH * _SEQUENCE).reshape(_BATCH, -1) % int(model.config.get_text_config().vocab_size)
    mask = torch.ones_like(ids)
    mask[0, -1] = 0
    return {"input_ids": ids, "attention_mask": mask}
