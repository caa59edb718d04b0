"""FFNs as other exporters write them: the same structure with few neurons."""

from __future__ import annotations

from support.third_party_activations import ACTIVATIONS
from support.third_party_layers import LAYERS
from support.third_party_quantized import QUANTIZED

GRAPHS = {**LAYERS, **ACTIVATIONS, **QUANTIZED}
"""name: (builder, FFNs rewritten, a part of the reason for each other FFN)."""
