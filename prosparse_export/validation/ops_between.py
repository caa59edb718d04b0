"""Name the operators of a graph between two checked values."""

from __future__ import annotations

from collections.abc import Iterable

import onnx

__all__ = ["OpsBetween"]

_DATA_MOVEMENT = {
    "Cast",
    "Concat",
    "Constant",
    "Expand",
    "Identity",
    "Reshape",
    "Shape",
    "Slice",
    "Squeeze",
    "Transpose",
    "Unsqueeze",
}


class OpsBetween:
    """Names the operators between a value and the checked values before it.

    Args:
        model: the graph.
        ends: the checked values.
    """

    def __init__(self, model: onnx.ModelProto, ends: Iterable[str]) -> None:
        self._places = {name: place for place, node in enumerate(model.graph.node) for name in node.output}
        self._graph = model.graph
        self._ends = set(ends)
        self._inputs = [value.name for value in model.graph.input]

    def __call__(self, value: str, *, from_inputs: bool = False) -> str:
        """Return the attention and normalization operators that lead to ``value``, else the last four operators.

        Args:
            value: name of the value.
            from_inputs: also name the graph inputs that lead to it.
        """
        seen: set[str] = set()
        waiting = [value]
        while waiting:
            name = waiting.pop()
            if name in seen or (name in self._ends and name != value):
                continue
            seen.add(name)
            if name in self._places:
                waiting += [item for item in self._graph.node[self._places[name]].input if item]
        places = sorted({self._places[name] for name in seen if name in self._places})
        names = list(dict.fromkeys(self._graph.node[place].op_type for place in places))
        names = [name for name in names if name not in _DATA_MOVEMENT]
        special = [name for name in names if "Attention" in name or "Normalization" in name or name == "Softmax"]
        between = ", ".join(special or names[-4:])
        inputs = [name for name in self._inputs if name in seen and not name.startswith("past_key_values.")]
        return f"from {', '.join(inputs)} through {between}" if from_inputs else between
