"""One tiny random model per family, and how its FFNs must be rewritten."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from transformers import PreTrainedModel

from support.model_sizes import GEMMA3N, LAYERS, M2M100, falcon, grouped, opt, sizes, t5, two_layers


@dataclass(frozen=True, eq=False)
class Family:
    """A row of docs/reference/families.md.

    Attributes:
        name: the family's name.
        build: builds the model, with random weights.
        op: the operator that its FFNs become; "" if they stay dense.
        activation: the operator's attribute.
        threshold: the operator's attribute.
        reasons: why FFNs stay dense.
        ffns: number of FFNs that become operators.
        attention: start of the reason why attention is not fused, or "".
        packed: q_proj, k_proj and v_proj become one projection.
        encoder: an encoder: hidden states, no KV cache, no generation.
        encoder_decoder: two graphs; the decoder generates from the encoder's states.
        error: part of the error, if the family cannot be exported.
        note: the table's note, in place of ``error``.
        router: suffix of the module path of two-layer networks that are not FFNs and are not counted.
        fields: overrides of config.json.
    """

    name: str
    build: Callable[[], PreTrainedModel]
    op: str
    activation: str
    threshold: float = 0.0
    reasons: frozenset[str] = frozenset()
    ffns: int = LAYERS
    attention: str = ""
    encoder: bool = False
    encoder_decoder: bool = False
    packed: bool = False
    error: str = ""
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


FATRELU = {"hidden_act": "fatrelu", "hidden_act_param": 0.01}
GATED, UNGATED = "SparseGatedFFNF32", "SparseFFNF32"


def llama() -> PreTrainedModel:
    return hf.LlamaForCausalLM(hf.LlamaConfig(**grouped(hidden_act="relu")))


def arcee() -> PreTrainedModel:
    return hf.ArceeForCausalLM(hf.ArceeConfig(**grouped(hidden_act="relu2")))


def gemma() -> PreTrainedModel:
    return hf.GemmaForCausalLM(hf.GemmaConfig(**grouped(hidden_act="relu")))


def qwen2() -> PreTrainedModel:
    return hf.Qwen2ForCausalLM(hf.Qwen2Config(**grouped(hidden_act="relu")))


FAMILIES = [
    Family("LLaMA (ReluLLaMA)", llama, GATED, "relu", packed=True),
    Family(
        "LLaMA with FATReLU (ProSparse-LLaMA-2)",
        llama,
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
        packed=True,
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
    Family("Qwen2", qwen2, GATED, "relu", packed=True),
    Family(
        "Qwen2 with FATReLU",
        qwen2,
        GATED,
        "fatrelu",
        threshold=0.01,
        fields=FATRELU,
        packed=True,
    ),
    Family("Qwen3", lambda: hf.Qwen3ForCausalLM(hf.Qwen3Config(**grouped(hidden_act="relu"))), GATED, "relu"),
    Family("Gemma", gemma, GATED, "relu", packed=True),
    Family(
        "Gemma 3",
        lambda: hf.Gemma3ForCausalLM(
            hf.Gemma3TextConfig(
                **two_layers(grouped(hidden_activation="relu", layer_types=GEMMA3N["layer_types"], sliding_window=8))
            )
        ),
        GATED,
        "relu",
        ffns=2,
    ),
    Family(
        "Gemma 3n",
        lambda: hf.Gemma3nForCausalLM(hf.Gemma3nTextConfig(**two_layers(grouped(**GEMMA3N)))),
        "",
        "",
        reasons=frozenset(
            {
                "its threshold is computed per token from all neurons (Gaussian top-k)",
                "gate is Gelu, not a ReLU",
                "activation is Gelu (tanh), not a ReLU",
            }
        ),
        router=".altup",
    ),
    Family("OPT", lambda: hf.OPTForCausalLM(hf.OPTConfig(**opt())), UNGATED, "relu", packed=True),
    Family(
        "OPT-350m (norms after, project_in, project_out)",
        lambda: hf.OPTForCausalLM(hf.OPTConfig(**opt(word_embed_proj_dim=16, do_layer_norm_before=False))),
        UNGATED,
        "relu",
        packed=True,
    ),
    Family(
        "GPT-NeoX",
        lambda: hf.GPTNeoXForCausalLM(hf.GPTNeoXConfig(**sizes(hidden_act="relu"))),
        UNGATED,
        "relu",
    ),
    Family(
        "Falcon (ReluFalcon-40B)",
        lambda: hf.FalconForCausalLM(
            hf.FalconConfig(**falcon(alibi=False, new_decoder_architecture=True, num_kv_heads=2))
        ),
        UNGATED,
        "relu",
    ),
    Family(
        "Falcon with alibi (falcon-rw)",
        lambda: hf.FalconForCausalLM(hf.FalconConfig(**falcon(alibi=True, bias=True, multi_query=False))),
        UNGATED,
        "relu",
        error="Could not find an implementation for Mul",
        note="onnxruntime has no bfloat16 Mul, in which transformers computes alibi",
    ),
    Family(
        "Nemotron, Minitron",
        lambda: hf.NemotronForCausalLM(hf.NemotronConfig(**grouped(hidden_act="relu2"))),
        UNGATED,
        "relu2",
    ),
    Family("Arcee AFM", arcee, UNGATED, "relu2", packed=True),
    Family(
        "NanoChat",
        lambda: hf.NanoChatForCausalLM(hf.NanoChatConfig(**grouped(hidden_act="relu2"))),
        UNGATED,
        "relu2",
    ),
    Family(
        "Persimmon",
        lambda: hf.PersimmonForCausalLM(hf.PersimmonConfig(**sizes(hidden_act="relu2"))),
        UNGATED,
        "relu2",
    ),
    Family(
        "Jais-2",
        lambda: hf.Jais2ForCausalLM(hf.Jais2Config(**grouped(hidden_act="relu2"))),
        UNGATED,
        "relu2",
        packed=True,
    ),
    Family(
        "BitNet b1.58",
        lambda: hf.BitNetForCausalLM(hf.BitNetConfig(**grouped(hidden_act="relu2"))),
        "",
        "",
        reasons=frozenset({"a norm between the activation and down_proj needs every neuron"}),
        packed=True,
    ),
    Family(
        "Mixtral-type experts",
        lambda: hf.MixtralForCausalLM(
            hf.MixtralConfig(**grouped(hidden_act="relu", num_local_experts=4, sliding_window=None))
        ),
        "",
        "",
        reasons=frozenset({"mixture of experts: weights are selected per token at run time"}),
        packed=True,
    ),
    Family(
        "BERT-type encoder",
        lambda: hf.BertModel(hf.BertConfig(**sizes(hidden_act="relu"))),
        UNGATED,
        "relu",
        encoder=True,
    ),
    Family(
        "T5 (v1.0)",
        lambda: hf.T5ForConditionalGeneration(hf.T5Config(**t5(feed_forward_proj="relu"))),
        UNGATED,
        "relu",
        ffns=2,
        encoder_decoder=True,
    ),
    Family(
        "T5, gated relu",
        lambda: hf.T5ForConditionalGeneration(hf.T5Config(**t5(feed_forward_proj="gated-relu"))),
        GATED,
        "relu",
        ffns=2,
        encoder_decoder=True,
    ),
    Family(
        "M2M-100, NLLB-200",
        lambda: hf.M2M100ForConditionalGeneration(hf.M2M100Config(**M2M100)),
        UNGATED,
        "relu",
        ffns=2,
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
        error="torch.export cannot trace routing at run time",
    ),
    Family(
        "SmallThinker (experts, custom code)",
        llama,
        "",
        "",
        fields={
            "model_type": "smallthinker",
            "architectures": ["SmallThinkerForCausalLM"],
            "auto_map": {"AutoModelForCausalLM": "modeling_smallthinker.SmallThinkerForCausalLM"},
        },
        error="contains Python code for it (auto_map), which was not run",
    ),
]


def family(name: str) -> Family:
    """Return the family called ``name``."""
    return next(family for family in FAMILIES if family.name == name)
