"""Programs decomposed in place become the graphs that torch.onnx's own second trace gives; others get that trace."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx_ir as ir
import pytest
import torch
from support.same_graph import first_difference
from torch.onnx._internal.exporter import _core, _fx_passes
from torch.onnx._internal.exporter._registration import ONNXRegistry

from graph_passes.simplify_trace import merge_equal, simplify_trace
from prosparse_export.export.decompositions import decomposed_in_place
from prosparse_export.quiet import quiet


class Function(torch.nn.Module):
    def __init__(self, function: Callable[[torch.Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> Any:
        return self.function(x)


def changed(x: torch.Tensor) -> torch.Tensor:
    """Its result is wrong where a copy that is changed in place is taken for its source."""
    y = x * 2
    copy = y.to(torch.float32, copy=True)
    copy.add_(1)
    return y + copy


SPARED: dict[str, Callable[[torch.Tensor], Any]] = {
    "casts": lambda x: (x * 3).to(torch.int64).to(x.dtype) / 2 + x.half().float() + x.bool().to(torch.uint8),
    "casts that change nothing": lambda x: x.float().to(torch.float32, copy=True) * 2,
    "operators on bool": lambda x: ((x > 0) & (x < 1)).float() + ((x > 0) | True).to(x),
    "reshapes": lambda x: x.reshape(x.shape).transpose(0, 1).reshape(-1).contiguous() * 2,
    "an output cast to its own type": lambda x: (x * 2).float(),
    "an output reshaped to its own shape": lambda x: (x * 2).reshape(x.shape),
    "an output twice": lambda x: ((y := x * 2), y.float()),
    "an input as an output": lambda x: (x.float(), x * 2),
}
AGAIN: dict[str, Callable[[torch.Tensor], Any]] = {
    "a copy changed in place": changed,
    "an operator that onnxscript lacks": lambda x: x.var(-1),
}


def program(function: Callable[[torch.Tensor], Any]) -> torch.export.ExportedProgram:
    dynamic = ({0: torch.export.Dim.DYNAMIC},)
    exported = torch.export.export(Function(function), (torch.rand(3, 4),), dynamic_shapes=dynamic)
    _fx_passes.remove_assertion_nodes(exported.graph_module)  # as transformers' exporter does
    return exported


def graph(function: Callable[[torch.Tensor], Any]) -> ir.Model:
    with quiet():
        exported = torch.onnx.export(
            program(function), (), dynamo=True, optimize=False, opset_version=20, verbose=False
        )
    assert exported is not None
    simplify_trace(exported.model)
    merge_equal(exported.model)
    for position, value in enumerate(exported.model.graph.outputs):  # named by nodes, of which one way has more
        value.name = f"output.{position}"
    return exported.model


@pytest.fixture
def traces(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """A list that grows with each second trace."""
    found: list[object] = []
    real = _fx_passes.decompose_with_registry

    def counted(exported: torch.export.ExportedProgram, registry: Any) -> torch.export.ExportedProgram:
        found.append(exported)
        return real(exported, registry)

    monkeypatch.setattr(_fx_passes, "decompose_with_registry", counted)
    return found


@pytest.mark.parametrize("name", [*SPARED, *AGAIN])
def test_the_graph_is_that_of_the_second_trace(name: str, traces: list[object]) -> None:
    function = {**SPARED, **AGAIN}[name]
    with decomposed_in_place():
        ours = graph(function)
    assert len(traces) == (name in AGAIN)
    assert first_difference(ours, graph(function)) == ""


def test_a_cast_to_another_device_is_left_to_the_second_trace(traces: list[object]) -> None:
    exported = program(lambda x: x.to("meta") * 2)
    with decomposed_in_place():
        _core._prepare_exported_program_for_export(exported, registry=ONNXRegistry.from_torchlib())
    assert len(traces) == 1
