"""Every family of ReLU-type decoders through the whole chain, tiny and random: docs/reference/families.md."""

from __future__ import annotations

import functools
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from conftest import ROOT
from support.families import FAMILIES, Family
from support.model_sizes import D_FF, D_MODEL
from support.pytorch_reference import Encoded, Reference, Translated, rounding_bound
from support.relu_shapes import count_relu_shapes

from graph_passes import FfnOutcome
from graph_passes.custom_ops import ATTENTION
from prosparse_export import ExportOptions, ProSparseError, export_model, load
from prosparse_export.runtime.encoder_decoder import EncoderDecoder, encoder_path
from prosparse_models import load_checkpoint

pytestmark = pytest.mark.integration


@dataclass(frozen=True)
class Measured:
    """The outcome of one family's export; differences are absolute."""

    rewritten: tuple[FfnOutcome, ...]
    not_rewritten: tuple[FfnOutcome, ...]
    attention: tuple[str, ...]
    fused_attention: bool
    packed: bool
    shapes: int
    sparsity: float
    largest_difference: float
    bound: float
    greedy_differs: int


@functools.cache
def measure(family: Family) -> Measured:
    with tempfile.TemporaryDirectory() as name:
        folder, output = Path(name) / "model", Path(name) / "out" / "m.onnx"
        family.save(folder)
        result = export_model(folder, output, ExportOptions(allow_dense=not family.op))
        model = load_checkpoint(folder, encoder_decoder=family.encoder_decoder).model
        kind = Encoded if family.encoder else Translated if family.encoder_decoder else Reference
        reference = kind(model, [o.linears[-1] for o in result.rewritten])
        size = max(float(np.abs(x).max()) for x in (reference.padded, reference.decoded))
        differences, greedy = [], 0
        for library in (True, False):
            sparse: Any = (EncoderDecoder.open if family.encoder_decoder else load)(output, library=library)
            differences += reference.differences(sparse)
            greedy += reference.greedy_differs(sparse, rounding_bound(size))
        shapes, packed = 0, False
        for path in (output, encoder_path(output)) if family.encoder_decoder else (output,):
            graph = ir.load(path).graph
            assert "GroupQueryAttention" not in {node.op_type for node in graph}  # ours takes its place everywhere
            packed = packed or all_are_packed(graph)
            shapes += count_relu_shapes(graph) + sum("FFN" in node.op_type for node in graph)
        return Measured(
            result.rewritten,
            result.not_rewritten,
            result.attention_not_fused,
            result.manifest.attention != "unfused",
            packed,
            shapes,
            reference.sparsity,
            float(np.max(differences)),  # keeps a NaN
            rounding_bound(size),
            greedy,
        )


def all_are_packed(graph: ir.Graph) -> bool:
    """Return whether every attention takes q, k and v from one projection."""
    attentions = [node for node in graph if node.op_type in ATTENTION]
    qkv = [node.inputs[0].producer() if node.inputs[0] is not None else None for node in attentions]
    return bool(attentions) and all(node is not None and node.op_type != "Concat" for node in qkv)


EXPORTED = [family for family in FAMILIES if not family.error]
NOT_EXPORTED = [family for family in FAMILIES if family.error]


@pytest.mark.parametrize("family", NOT_EXPORTED, ids=lambda family: family.name)
def test_family_that_cannot_be_exported(family: Family, tmp_path: Path) -> None:
    assert family.error in export_error(family, tmp_path)
    assert not (tmp_path / "out").exists()


def export_error(family: Family, folder: Path) -> str:
    family.save(folder / "model")
    with pytest.raises(ProSparseError) as caught:
        export_model(folder / "model", folder / "out" / "m.onnx")
    assert caught.value.hint
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("family", EXPORTED, ids=lambda family: family.name)
def test_family(family: Family) -> None:
    found = measure(family)
    assert found.largest_difference <= found.bound
    assert found.greedy_differs == 0
    assert len(found.rewritten) == (family.ffns if family.op else 0)
    assert {(o.op, o.activation) for o in found.rewritten} <= {(family.op, family.activation)}
    assert all(o.threshold == pytest.approx(family.threshold, abs=1e-8) for o in found.rewritten)
    assert found.packed == family.packed
    assert all((o.d_model, o.d_ff) == (D_MODEL, D_FF) for o in found.rewritten)
    assert {o.reason for o in found.not_rewritten} == family.reasons
    of_relu = [o for o in found.not_rewritten if "not a ReLU" not in o.reason]
    assert found.shapes == len(found.rewritten) + len(of_relu)  # the second count agrees
    if family.attention:
        assert any(line.split(": ", 1)[1].startswith(family.attention) for line in found.attention)
    else:
        assert found.attention == ()


def table() -> str:
    lines = ["| family | FFNs | operator | activation | exact | generates | attention | sparsity |"]
    lines.append("|---|---|---|---|---|---|---|---|")
    notes = []
    for family in EXPORTED:
        found = measure(family)
        dense = [o for o in found.not_rewritten if not (family.router and o.module.endswith(family.router))]
        total = len(found.rewritten) + len(dense)
        outcome = found.rewritten[0] if found.rewritten else None
        cells = [family.name, f"{len(found.rewritten)} of {total}"]
        cells += [outcome.op.removesuffix("F32") if outcome else "dense", outcome.activation if outcome else "-"]
        cells.append("yes" if found.largest_difference <= found.bound else "NO")
        generates = "-" if family.encoder else "yes" if found.greedy_differs == 0 else "NO"
        cells += [generates, "fused, packed" if found.packed else "fused" if found.fused_attention else "unfused"]
        cells.append(f"{found.sparsity:.0%}" if outcome else "-")
        lines.append("| " + " | ".join(cells) + " |")
        notes += [f"- {family.name}: {reason}." for reason in sorted({o.reason for o in dense})]
        if not family.encoder_decoder:
            notes += [f"- {family.name}: attention stays unfused: {family.attention}." for _ in found.attention[:1]]
    for family in NOT_EXPORTED:
        lines.append(f"| {family.name} | - | not exported | - | - | - | - | - |")
        notes.append(f"- {family.name}: not exported: {family.note or family.error}.")
    return "\n".join([*lines, "", "Reasons:", "", *notes])


def test_the_committed_table_is_current() -> None:
    from support.tables import check_table

    check_table(ROOT / "docs" / "reference" / "families.md", table())
