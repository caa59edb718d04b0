"""A PyTorch KV cache with 8-bit entries."""

from __future__ import annotations

import numpy as np
import torch

from prosparse_export.export.rounded_cache import RoundedCache

SCALE = np.array([1.0, 0.5], np.float32).reshape(1, 1, 1, 2)


def test_entries_are_rounded_once_and_kept() -> None:
    cache = RoundedCache([(SCALE, np.array([2.0], np.float32))])
    first = torch.tensor([[[[0.4, 0.4], [1.5, -200.0]]]])
    keys, values = cache.update(first, first, 0)
    assert keys.tolist() == [[[[0.0, 0.5], [2.0, -64.0]]]]  # half to even; 128 levels below 0
    assert values.tolist() == [[[[0.0, 0.0], [2.0, -200.0]]]]
    longer, _ = cache.update(torch.tensor([[[[300.0, 0.26]]]]), first[:, :, :1], 0)
    assert longer.tolist() == [[[[0.0, 0.5], [2.0, -64.0], [127.0, 0.5]]]]
    assert cache.get_seq_length() == 3
