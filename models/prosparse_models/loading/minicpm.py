"""Fold MiniCPM's scaling constants into LLaMA weights.

MiniCPM is LLaMA with three constant factors: embeddings times ``scale_emb``, each residual branch
times ``scale_depth / sqrt(layers)``, and the last hidden state divided by
``d_model / dim_model_base`` before lm_head. All are linear, so they fold into the weights: MiniCPM-S's
"llama format" was derived from the original in the same way.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from prosparse_models.loading.file_weights import FileWeights

__all__ = ["fold_minicpm_scales"]


@torch.no_grad()
def fold_minicpm_scales(model: PreTrainedModel, config: Mapping[str, Any], weights: FileWeights | None = None) -> None:
    """Fold MiniCPM's scales into ``model``, a LlamaForCausalLM with MiniCPM's raw weights, in place.

    Embedding and lm_head get different factors, so a tied lm_head becomes untied.

    Args:
        model: a LLaMA with the checkpoint's weights.
        config: config.json: ``scale_emb`` (default 1), ``scale_depth`` (default 1),
            ``dim_model_base`` (default d_model).
        weights: the files of the model's matrices if it holds placeholders, which are scaled when read.

    Source:
        openbmb/MiniCPM-S-1B-sft config.json; Hu et al., "MiniCPM", arXiv:2404.06395, section 3.
    """

    def scaled(parameter: nn.Parameter, factor: float) -> nn.Parameter:
        if weights is not None:
            return weights.scale(parameter, factor)
        return nn.Parameter(parameter * factor, requires_grad=False)

    d_model = model.config.hidden_size
    layers = model.config.num_hidden_layers
    branch_scale = float(config.get("scale_depth", 1.0)) / math.sqrt(layers)
    logit_scale = float(config.get("dim_model_base", d_model)) / d_model
    embedding = model.get_input_embeddings()
    head = model.get_output_embeddings()
    head.weight = scaled(head.weight, logit_scale)
    embedding.weight = scaled(embedding.weight, float(config.get("scale_emb", 1.0)))
    model.config.tie_word_embeddings = False
    for layer in model.model.layers:
        for linear in (layer.self_attn.o_proj, layer.mlp.down_proj):
            linear.weight = scaled(linear.weight, branch_scale)
