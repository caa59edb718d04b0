"""What an attention mask says: causal order, padding, a window, or more."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from support.graphs import graph_of

from graph_passes.patterns.attention_mask import attention_window

CAUSAL = "causal = LessOrEqual (keys, queries)\nreal = Cast <to = 9> (attention_mask)\n"
NEAR = "first = Sub (queries, window)\nnear = Greater (keys, first)\nhere = And (causal, near)\n"
BIAS = "seen = And ({}, real)\nbias = Where (seen, nothing, lowest)"
OTHER = "its mask is not limited to causality, padding and a sliding window: expected 1 comparison, got {}"


def mask(nodes: str, window: float = 4) -> ir.Value:
    model = graph_of(
        nodes,
        "int64[1, t] keys, int64[s, 1] queries, int64[1, t] attention_mask",
        "float[s, t] bias",
        window=np.array(window, np.int64 if window == int(window) else np.float32),
        nothing=np.float32(0),
        lowest=np.float32(-3e38),
        slopes=np.ones((3, 5), np.float32),
    )
    return model.graph.outputs[0]


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        (CAUSAL + BIAS.format("causal"), 0),
        (CAUSAL + NEAR + BIAS.format("here"), 4),
        (CAUSAL + NEAR.replace("keys, first", "first, keys") + BIAS.format("here"), OTHER.format(2)),
        (CAUSAL + NEAR.replace("Sub (queries", "Sub (keys") + BIAS.format("here"), OTHER.format(2)),
        (CAUSAL + NEAR.replace("And", "Or") + BIAS.format("here"), OTHER.format(3)),
        (CAUSAL.replace("attention_mask", "keys") + BIAS.format("causal"), OTHER.format(1)),
        (CAUSAL + BIAS.format("causal").replace("nothing", "slopes"), "its mask contains weights"),
    ],
    ids=["causal", "window", "reversed", "of the keys", "or", "no padding", "weights"],
)
def test_windows(nodes: str, expected: int | str) -> None:
    assert attention_window(mask(nodes)) == expected


def test_a_window_of_no_token_is_none() -> None:
    assert attention_window(mask(CAUSAL + NEAR + BIAS.format("here"), 0)) == OTHER.format(2)
