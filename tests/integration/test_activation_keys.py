"""Activation overrides in families whose config.json has another key than hidden_act."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from numpy.typing import NDArray
from support.families import family
from support.model_sizes import VOCAB
from support.pytorch_reference import rounding_bound

from prosparse_export import ExportOptions, ProSparseError, export_model, load
from prosparse_export.runtime.encoder_decoder import EncoderDecoder
from prosparse_models import load_checkpoint

pytestmark = pytest.mark.integration
T, TOKENS = 0.3, 7
IDS = np.random.default_rng(0).integers(3, VOCAB, (2, TOKENS))
FATRELU = {"hidden_act": "fatrelu", "hidden_act_param": T}
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "OPT, relu2": ("OPT", {"activation": "relu2"}, {"activation_function": "relu2"}),
    "OPT, threshold": ("OPT", {"threshold": T}, {"activation_function": "relu", **FATRELU}),
    "T5, relu2": ("T5 (v1.0)", {"activation": "relu2"}, {"feed_forward_proj": "relu2", "dense_act_fn": "relu2"}),
    "T5, threshold": ("T5 (v1.0)", {"threshold": T}, {"feed_forward_proj": "relu", "dense_act_fn": "relu", **FATRELU}),
    "gated T5, relu2": (
        "T5, gated relu",
        {"activation": "relu2"},
        {"feed_forward_proj": "gated-relu2", "dense_act_fn": "relu2", "is_gated_act": True},
    ),
    "gated T5, threshold": (
        "T5, gated relu",
        {"threshold": T},
        {"feed_forward_proj": "gated-relu", "dense_act_fn": "relu", **FATRELU},
    ),
    "Gemma 3, threshold": ("Gemma 3", {"threshold": T}, {"hidden_activation": "relu", **FATRELU}),
}
OF_OURS = ("hidden_act", "hidden_act_param")


class Activation(torch.nn.Module):
    """The overridden activation, written independently."""

    def __init__(self, options: dict[str, Any]) -> None:
        super().__init__()
        self.threshold = options.get("threshold")

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return z.clamp(min=0) ** 2 if self.threshold is None else torch.where(z > self.threshold, z, 0.0)


@torch.no_grad()
def logits(model: torch.nn.Module, is_pair: bool) -> NDArray[np.float32]:
    ids = torch.from_numpy(IDS)
    return model(input_ids=ids, **({"decoder_input_ids": ids} if is_pair else {})).logits.numpy()  # type: ignore[no-any-return]


def by_hand(folder: Path, options: dict[str, Any], is_pair: bool) -> NDArray[np.float32]:
    """PyTorch, loaded by transformers alone, with each FFN's activation replaced by name."""
    auto = hf.AutoModelForSeq2SeqLM if is_pair else hf.AutoModelForCausalLM
    model = auto.from_pretrained(folder).eval()
    names = ("activation_fn", "act", "act_fn")
    ffns = [m for m in model.modules() if any(hasattr(m, n) for n in names) and list(m.children())]
    assert len(ffns) == (1 if "OPT" in type(model).__name__ else 2)
    for ffn in ffns:
        setattr(ffn, next(n for n in names if hasattr(ffn, n)), Activation(options))
    return logits(model, is_pair)


@pytest.mark.parametrize("name", CASES)
def test_config_and_model_agree(name: str, tmp_path: Path) -> None:
    """What a checkpoint computes, and what its config.json, as exported, makes transformers and a reload compute."""
    family_name, options, keys = CASES[name]
    chosen = family(family_name)
    folder, is_pair = tmp_path / "m", chosen.encoder_decoder
    chosen.save(folder)
    activation = "fatrelu" if "threshold" in options else "relu2"
    checkpoint = load_checkpoint(folder, encoder_decoder=is_pair, **options)
    expected: dict[str, Any] = {"activation": {"config": "relu", "used": activation}}
    if "threshold" in options:
        expected["threshold"] = {"config": 0.0, "used": T}
    assert checkpoint.overrides == expected
    actual, wanted = logits(checkpoint.model, is_pair), by_hand(folder, options, is_pair)
    np.testing.assert_allclose(actual, wanted, rtol=0, atol=rounding_bound(float(np.abs(wanted).max())))
    without = logits(load_checkpoint(folder, encoder_decoder=is_pair).model, is_pair)
    assert np.abs(actual - without).max() > 10 * rounding_bound(float(np.abs(wanted).max()))

    config = json.loads(json.dumps(checkpoint.config))  # as the export writes it
    assert {key: config.get(key) for key in keys} == keys
    assert all(key in keys or key not in config for key in OF_OURS)
    reloaded = shutil.copytree(folder, tmp_path / "again")
    (reloaded / "config.json").write_text(json.dumps(config))
    auto = hf.AutoModelForSeq2SeqLM if is_pair else hf.AutoModelForCausalLM
    auto.from_config(hf.AutoConfig.from_pretrained(reloaded))  # transformers knows every value
    again = load_checkpoint(reloaded, encoder_decoder=is_pair)
    assert (again.activation, again.threshold) == (activation, options.get("threshold", 0.0))
    assert np.array_equal(logits(again.model, is_pair), actual)
    assert {key: again.config.get(key) for key in keys} == keys


@pytest.mark.parametrize("name", ["OPT, threshold", "gated T5, relu2"])
def test_artifact_agrees(name: str, tmp_path: Path) -> None:
    family_name, options, _ = CASES[name]
    chosen = family(family_name)
    folder, is_pair = tmp_path / "m", chosen.encoder_decoder
    chosen.save(folder)
    result = export_model(folder, tmp_path / "out" / "m.onnx", ExportOptions(**options))
    assert {o.activation for o in result.rewritten} == {"fatrelu" if "threshold" in options else "relu2"}
    checkpoint = load_checkpoint(folder, encoder_decoder=is_pair, **options)
    assert json.loads((tmp_path / "out" / "prosparse.json").read_text())["overrides"] == checkpoint.overrides
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == json.loads(json.dumps(checkpoint.config))
    if is_pair:
        pair = EncoderDecoder.open(result.path)
        actual, _ = pair.forward(IDS, pair.encode(IDS, np.ones_like(IDS)))
    else:
        actual, _ = load(result.path).forward(IDS, np.ones_like(IDS))
    wanted = by_hand(folder, options, is_pair)
    assert np.abs(actual - wanted).max() <= rounding_bound(float(np.abs(wanted).max()))


@pytest.mark.parametrize("name", ["OPT", "T5, gated relu"])
def test_drelu_needs_its_three_matrices(name: str, tmp_path: Path) -> None:
    family(name).save(tmp_path / "m")
    with pytest.raises(ProSparseError, match=r"activation drelu: no FFN of \w+ supports it") as e:
        export_model(tmp_path / "m", tmp_path / "out" / "m.onnx", ExportOptions(activation="drelu"))
    assert e.value.hint is not None
    assert "gate_proj" in e.value.hint
