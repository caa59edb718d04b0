"""The scales of an 8-bit KV cache, read from a graph."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from unit.test_quantize_kv_cache import KEY, PER_CHANNEL, PER_TENSOR, VALUE, attention

from graph_passes.quantize_kv_cache import QuantizeKvCachePass
from prosparse_export.analysis.cache_scales import cache_scales


@pytest.mark.parametrize("scales", [PER_CHANNEL, PER_TENSOR], ids=["per channel", "per tensor"])
def test_scales_broadcast_over_the_cache(scales: dict, tmp_path: Path) -> None:
    model = attention()
    assert cache_scales(ir.to_proto(model), tmp_path) == []
    QuantizeKvCachePass(scales)(model)
    ((keys, values),) = cache_scales(ir.to_proto(model), tmp_path)
    cache = np.ones((3, 2, 5, 16), np.float32)
    np.testing.assert_array_equal((cache * keys)[1, :, 4], np.broadcast_to(scales[KEY], (2, 16)))
    np.testing.assert_array_equal((cache * values)[2, :, 0], np.broadcast_to(scales[VALUE], (2, 16)))
