"""The bound and the hint of the check after an export."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from support.manifests import SPARSE

from prosparse_export import ProSparseError
from prosparse_export.artifact.manifest import GROUP_QUERY_ATTENTION, Manifest, ModelFolderSource
from prosparse_export.export import check_logits

FATRELU = Manifest(ModelFolderSource("float32", {}), {}, {"": 20}, ffns=(replace(SPARSE, linears=()),))


def run_check(manifest: Manifest, difference: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Check logits up to 1 that differ by ``difference``."""
    pairs = [("logits", np.array([1.0 + difference]), np.array([1.0]), 0.0)]
    monkeypatch.setattr(check_logits, "_decoder", lambda *_, **__: pairs)
    monkeypatch.setattr(check_logits, "_encoder_decoder", lambda *_, **__: pairs)
    monkeypatch.setattr(check_logits, "with_stored_weights", lambda *_: None)
    monkeypatch.setattr(check_logits, "stored_formats", lambda *_: {})  # FATRELU names no modules
    checkpoint: Any = SimpleNamespace(model=SimpleNamespace(named_modules=dict), weights=None)
    check_logits.check_logits(checkpoint, Path("m.onnx"), manifest, library=True)


def test_threshold_crossings_widen_the_bound_of_decoders_only(monkeypatch: pytest.MonkeyPatch) -> None:
    run_check(FATRELU, 0.005, monkeypatch)
    with pytest.raises(ProSparseError, match=r"expected at most 0\.001, got"):
        run_check(replace(FATRELU, encoder="m.encoder.onnx"), 0.005, monkeypatch)


@pytest.mark.parametrize("difference", [0.5, float("nan")])
def test_the_hint_names_unfused_attention_only_where_it_is_fused(
    difference: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    for change, found in [
        ({"attention": GROUP_QUERY_ATTENTION}, True),
        ({"attention": "unfused"}, False),
        ({"attention": "unfused", "encoder": "m.encoder.onnx"}, False),
    ]:
        with pytest.raises(ProSparseError, match="logits differ") as caught:
            run_check(replace(FATRELU, **change), difference, monkeypatch)
        assert ("--attention" in (caught.value.hint or "")) == found
        assert "report this model" in (caught.value.hint or "")
