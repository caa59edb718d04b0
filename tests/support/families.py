"""One tiny random model a family: what is built, and what must become of its feed-forward blocks."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from transformers import PreTrainedModel

VOCAB = 96
D_MODEL, D_FF, HEADS, LAYERS = 64, 64, 4, 1
LONGEST = 64


@dataclass(frozen=True, eq=False)
class Family:
    """A row of docs/reference/families.md.

    Attributes:
        name: what people call it.
        build: makes the model, with random weights.
        op: the operator that its blocks become; "" if they stay dense.
        activation: as the operator's attribute.
        threshold: as the operator's attribute.
        reasons: why blocks stay dense.
        blocks: feed-forward blocks that become operators.
        attention: start of the reason why attention is not fused, or "".
        packed: q, k and v become one product.
        encoder: hidden states, no cache, no generation.
        encoder_decoder: two graphs; the decoder generates from the encoder's states.
        refused: part of the error, where there is no export.
        note: what the table says of it, if not that part.
        router: end of the module path of small networks between two products that are no FFN and are not counted.
        fields: what config.json says instead of what transformers wrote.
    """

    name: str
    build: Callable[[], PreTrainedModel]
    op: str
    activation: str
    threshold: float = 0.0
    reasons: frozenset[str] = frozenset()
    blocks: int = LAYERS
    attention: str = ""
    encoder: bool = False
    encoder_decoder: bool = False
    packed: bool = False
    refused: str = ""
    note: str = ""
    router: str = ""
    fields: dict[str, Any] = field(default_factory=dict)

    def save(self, folder: Path) -> None:
        """Write the model's folder."""
        torch.manual_seed(0)
        model = self.build()
        for name, parameter in model.named_parameters():  # biases too; norms around 1
            torch.nn.init.normal_(parameter, mean=1.0 if "norm" in name and "weight" in name else 0.0, std=0.2)
        model.save_pretrained(folder)
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **self.fields}))


def sizes(**more: Any) -> dict[str, Any]:
    common = {
        "vocab_size": VOCAB,
        "hidden_size": D_MODEL,
        "intermediate_size": D_FF,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "max_position_embeddings": LONGEST,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    return {**common, **more}


def grouped(**more: Any) -> dict[str, Any]:
    """Sizes of models with grouped queries."""
    return sizes(num_key_value_heads=2, head_dim=16, **more)


def two_layers(values: dict[str, Any]) -> dict[str, Any]:
    """For models whose layers take turns."""
    return {**values, "num_hidden_layers": 2}


def opt(**more: Any) -> dict[str, Any]:
    return {**sizes(ffn_dim=D_FF, activation_function="relu", word_embed_proj_dim=D_MODEL), **more}


def falcon(**more: Any) -> dict[str, Any]:
    return sizes(ffn_hidden_size=D_FF, activation="relu", **more)


def t5(**more: Any) -> dict[str, Any]:
    """Sizes of a T5, one layer on either side."""
    common = {
        "vocab_size": VOCAB,
        "d_model": D_MODEL,
        "d_ff": D_FF,
        "d_kv": 8,
        "num_heads": HEADS,
        "num_layers": LAYERS,
    }
    return {**common, "decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 1, **more}


M2M100 = {
    "vocab_size": VOCAB,
    "d_model": D_MODEL,
    "encoder_ffn_dim": D_FF,
    "decoder_ffn_dim": D_FF,
    "encoder_layers": LAYERS,
    "decoder_layers": LAYERS,
    "encoder_attention_heads": HEADS,
    "decoder_attention_heads": HEADS,
    "activation_function": "relu",
    "max_position_embeddings": LONGEST,
}
GEMMA3N = {
    "vocab_size_per_layer_input": VOCAB,
    "hidden_size_per_layer_input": 8,
    "layer_types": ["sliding_attention", "full_attention"],
    "num_kv_shared_layers": 0,
    "activation_sparsity_pattern": [0.95, 0.0],
    "laurel_rank": 8,
    "altup_num_inputs": 2,
    "sliding_window": 8,
}
FATRELU = {"hidden_act": "fatrelu", "hidden_act_param": 0.01}
WINDOW = "its mask is more than causal order and padding"
GATED, PLAIN = "SparseGatedFFNF32", "SparseFFNF32"

FAMILIES = [
    Family(
        "LLaMA (ReluLLaMA)",
        lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**grouped(hidden_act="relu"))),
        GATED,
        "relu",
        packed=True,
    ),
    Family(
        "LLaMA with FATReLU (ProSparse-LLaMA-2)",
        lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**grouped(hidden_act="relu"))),
        GATED,
        "fatrelu",
        threshold=0.01,
        fields={**FATRELU, "model_type": "sparsellama", "architectures": ["SparseLlamaForCausalLM"]},
        packed=True,
    ),
    Family(
        "Mistral, sliding window",
        lambda: hf.MistralForCausalLM(hf.MistralConfig(**grouped(hidden_act="relu", sliding_window=8))),
        GATED,
        "relu",
        attention=WINDOW,
    ),
    Family(
        "Mistral with FATReLU",
        lambda: hf.MistralForCausalLM(hf.MistralConfig(**grouped(hidden_act="relu", sliding_window=None))),
        GATED,
        "fatrelu",
        threshold=0.01,
        fields=FATRELU,
        packed=True,
    ),
    Family(
        "Bamboo, TurboSparse-Mistral (dReLU)",
        lambda: hf.MistralForCausalLM(hf.MistralConfig(**grouped(hidden_act="relu", sliding_window=None))),
        GATED,
        "drelu",
        fields={"model_type": "bamboo", "architectures": ["BambooForCausalLM"], "hidden_act": "relu"},
        packed=True,
    ),
    Family(
        "Qwen2",
        lambda: hf.Qwen2ForCausalLM(hf.Qwen2Config(**grouped(hidden_act="relu"))),
        GATED,
        "relu",
        packed=True,
    ),
    Family(
        "Qwen2 with FATReLU",
        lambda: hf.Qwen2ForCausalLM(hf.Qwen2Config(**grouped(hidden_act="relu"))),
        GATED,
        "fatrelu",
        threshold=0.01,
        fields=FATRELU,
        packed=True,
    ),
    Family("Qwen3", lambda: hf.Qwen3ForCausalLM(hf.Qwen3Config(**grouped(hidden_act="relu"))), GATED, "relu"),
    Family(
        "Gemma",
        lambda: hf.GemmaForCausalLM(hf.GemmaConfig(**grouped(hidden_act="relu"))),
        GATED,
        "relu",
        packed=True,
    ),
    Family(
        "Gemma 3",
        lambda: hf.Gemma3ForCausalLM(
            hf.Gemma3TextConfig(
                **two_layers(grouped(hidden_activation="relu", layer_types=GEMMA3N["layer_types"], sliding_window=8))
            )
        ),
        GATED,
        "relu",
        blocks=2,
        attention=WINDOW,
    ),
    Family(
        "Gemma 3n",
        lambda: hf.Gemma3nForCausalLM(hf.Gemma3nTextConfig(**two_layers(grouped(**GEMMA3N)))),
        "",
        "",
        reasons=frozenset(
            {
                "its threshold is computed for each token from all its neurons (Gaussian top-k)",
                "gate is Gelu, not a ReLU",
                "activation is Gelu (tanh), not a ReLU",
            }
        ),
        attention=WINDOW,
        router=".altup",
    ),
    Family(
        "OPT",
        lambda: hf.OPTForCausalLM(hf.OPTConfig(**opt())),
        PLAIN,
        "relu",
        packed=True,
    ),
    Family(
        "OPT-350m (norms after, project_in, project_out)",
        lambda: hf.OPTForCausalLM(hf.OPTConfig(**opt(word_embed_proj_dim=16, do_layer_norm_before=False))),
        PLAIN,
        "relu",
        packed=True,
    ),
    Family(
        "GPT-NeoX",
        lambda: hf.GPTNeoXForCausalLM(hf.GPTNeoXConfig(**sizes(hidden_act="relu"))),
        PLAIN,
        "relu",
        attention="the heads are not merged",
    ),
    Family(
        "Falcon (ReluFalcon-40B)",
        lambda: hf.FalconForCausalLM(
            hf.FalconConfig(**falcon(alibi=False, new_decoder_architecture=True, num_kv_heads=2))
        ),
        PLAIN,
        "relu",
    ),
    Family(
        "Falcon with alibi (falcon-rw)",
        lambda: hf.FalconForCausalLM(hf.FalconConfig(**falcon(alibi=True, bias=True, multi_query=False))),
        PLAIN,
        "relu",
        refused="Could not find an implementation for Mul",
        note="onnxruntime has no product of bfloat16, in which transformers computes alibi",
    ),
    Family(
        "Nemotron, Minitron",
        lambda: hf.NemotronForCausalLM(hf.NemotronConfig(**grouped(hidden_act="relu2"))),
        PLAIN,
        "relu2",
        attention="the heads are not merged",
    ),
    Family(
        "Arcee AFM",
        lambda: hf.ArceeForCausalLM(hf.ArceeConfig(**grouped(hidden_act="relu2"))),
        PLAIN,
        "relu2",
        packed=True,
    ),
    Family(
        "NanoChat",
        lambda: hf.NanoChatForCausalLM(hf.NanoChatConfig(**grouped(hidden_act="relu2"))),
        PLAIN,
        "relu2",
        attention="the first output is no product",
    ),
    Family(
        "Persimmon",
        lambda: hf.PersimmonForCausalLM(hf.PersimmonConfig(**sizes(hidden_act="relu2"))),
        PLAIN,
        "relu2",
        attention="the heads are not merged",
    ),
    Family(
        "Jais-2",
        lambda: hf.Jais2ForCausalLM(hf.Jais2Config(**grouped(hidden_act="relu2"))),
        PLAIN,
        "relu2",
        packed=True,
    ),
    Family(
        "BitNet b1.58",
        lambda: hf.BitNetForCausalLM(hf.BitNetConfig(**grouped(hidden_act="relu2"))),
        "",
        "",
        reasons=frozenset({"a norm stands between the activation and down_proj: it needs every neuron"}),
        packed=True,
    ),
    Family(
        "Mixtral-type experts",
        lambda: hf.MixtralForCausalLM(
            hf.MixtralConfig(**grouped(hidden_act="relu", num_local_experts=4, sliding_window=None))
        ),
        "",
        "",
        reasons=frozenset({"experts: each token chooses its weights at run time"}),
        attention="no mask is added to the scores",
    ),
    Family(
        "BERT-type encoder",
        lambda: hf.BertModel(hf.BertConfig(**sizes(hidden_act="relu"))),
        PLAIN,
        "relu",
        encoder=True,
    ),
    Family(
        "T5 (v1.0)",
        lambda: hf.T5ForConditionalGeneration(hf.T5Config(**t5(feed_forward_proj="relu"))),
        PLAIN,
        "relu",
        blocks=2,
        encoder_decoder=True,
    ),
    Family(
        "T5, gated relu",
        lambda: hf.T5ForConditionalGeneration(hf.T5Config(**t5(feed_forward_proj="gated-relu"))),
        GATED,
        "relu",
        blocks=2,
        encoder_decoder=True,
    ),
    Family(
        "M2M-100, NLLB-200",
        lambda: hf.M2M100ForConditionalGeneration(hf.M2M100Config(**M2M100)),
        PLAIN,
        "relu",
        blocks=2,
        encoder_decoder=True,
    ),
    Family(
        "Switch Transformers (experts)",
        lambda: hf.SwitchTransformersForConditionalGeneration(
            hf.SwitchTransformersConfig(**t5(num_experts=4, num_sparse_encoder_layers=1, num_sparse_decoder_layers=1))
        ),
        "",
        "",
        encoder_decoder=True,
        refused="each token chooses at run time: torch.export cannot trace that choice",
    ),
    Family(
        "SmallThinker (experts, code of its own)",
        lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**grouped(hidden_act="relu"))),
        "",
        "",
        fields={
            "model_type": "smallthinker",
            "architectures": ["SmallThinkerForCausalLM"],
            "auto_map": {"AutoModelForCausalLM": "modeling_smallthinker.SmallThinkerForCausalLM"},
        },
        refused="brings Python code for it (auto_map), which was not run",
    ),
]
