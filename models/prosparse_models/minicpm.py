"""MiniCPM's scaling constants, folded into LLaMA weights.

MiniCPM is LLaMA with three constant factors: embeddings times ``scale_emb``, each residual branch
times ``scale_depth / sqrt(layers)``, and the last hidden state divided by
``d_model / dim_model_base`` before lm_head. All are linear, so they fold into weights: this is
how MiniCPM-S's own "llama format" is related to the original folder.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

__all__ = ["fold_minicpm_scales"]


@torch.no_grad()
def fold_minicpm_scales(model: PreTrainedModel, config: Mapping[str, Any]) -> None:
    """Fold MiniCPM's scales into ``model``, a LlamaForCausalLM with MiniCPM's raw weights, in place.

    Embedding and lm_head get different factors, so a tied lm_head becomes a matrix of its own.

    Args:
        model: the LLaMA that holds the checkpoint's weights.
        config: config.json: ``scale_emb`` (default 1), ``scale_depth`` (default 1),
            ``dim_model_base`` (default d_model).

    Source:
        openbmb/MiniCPM-S-1B-sft config.json; Hu et al., "MiniCPM", arXiv:2404.06395, section 3.
    """
    d_model = model.config.hidden_size
    layers = model.config.num_hidden_layers
    branch_scale = float(config.get("scale_depth", 1.0)) / math.sqrt(layers)
    logit_scale = float(config.get("dim_model_base", d_model)) / d_model
    embedding = model.get_input_embeddings()
    head = model.get_output_embeddings()
    head.weight = nn.Parameter(head.weight * logit_scale, requires_grad=False)
    embedding.weight = nn.Parameter(embedding.weight * float(config.get("scale_emb", 1.0)), requires_grad=False)
    model.config.tie_word_embeddings = False
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight.mul_(branch_scale)
        layer.mlp.down_proj.weight.mul_(branch_scale)
