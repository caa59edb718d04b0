"""Which FFNs the profile leaves dense: by the neurons that the kernels skip."""

from __future__ import annotations

from prosparse_export.export.predicted_speedup import TextProfile, unprofitable_ffns


def test_what_the_gate_leaves_active_decides() -> None:
    """dReLU: both layers are 95% sparse, but the gate of one leaves nearly every neuron active."""
    profile = TextProfile(
        texts={},
        tokens=64,
        perplexity=1.0,
        ids=[],
        sparsity={"0.down_proj": 0.95, "1.down_proj": 0.95},
        skipped={"0.down_proj": 0.05, "1.down_proj": 0.6},
        gated={"0.down_proj": True, "1.down_proj": True},
    )
    reasons = unprofitable_ffns(profile, "f32")
    assert list(reasons) == ["0.down_proj"]
    assert reasons["0.down_proj"] == "5.0% of its neurons are inactive: a speedup of at most 1.03x does not pay off"
