"""The rows of an 8-bit KV cache with scales per token."""

from __future__ import annotations

import numpy as np
import pytest

from graph_passes.cached_rows import cache_row_bytes, cached_head_dim, group_scales, read_rows, round_values


@pytest.mark.parametrize("head_dim", [1, 8, 31, 32, 33, 64, 80, 96, 128, 256])
def test_sizes(head_dim: int) -> None:
    assert cached_head_dim(cache_row_bytes(head_dim)) == head_dim
    assert cache_row_bytes(head_dim) <= 1.1 * head_dim or head_dim < 32 or head_dim % 32


def test_scales_are_the_next_bfloat16() -> None:
    x = np.zeros((1, 40), np.float32)
    x[0, 3], x[0, 39] = -127 * (1 + 2.0**-7), 127 * (1 + 2.0**-8)
    scales = group_scales(x)
    assert scales[0, 0] == scales[0, 31] == 1 + 2.0**-7  # a bfloat16
    assert scales[0, 32] == scales[0, 39] == 1 + 2.0**-7  # rounded up
    assert group_scales(np.zeros((1, 8), np.float32))[0, 0] == 2.0**-126


def test_rounding_keeps_values_within_half_a_step() -> None:
    x = (np.random.default_rng(0).standard_normal((3, 5, 80)) * 10.0 ** np.arange(-2, 3)[:, None]).astype(np.float32)
    scales = group_scales(x)
    assert (np.abs(round_values(x) - x) <= scales / 2 * (1 + 2.0**-16)).all()
    assert (np.abs(x) <= 127 * scales * (1 + 2.0**-22)).all()


def test_rows_are_values_then_scales() -> None:
    row = np.array([[1, -127, *[0] * 30, 5, 0xC0 - 256, 0x3F, 0x00, 0x40]], np.int8)  # 1.5 and 2
    np.testing.assert_array_equal(read_rows(row), [[1.5, -190.5, *[0.0] * 30, 10.0]])
