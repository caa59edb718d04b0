"""Name the operators of a graph that lie between two places that were looked at."""

from __future__ import annotations

from collections.abc import Iterable

import onnx

__all__ = ["Between"]

_MOVES = {"Cast", "Concat", "Constant", "Expand", "Identity", "Reshape", "Shape", "Slice", "Squeeze", "Transpose"}
_MOVES |= {"Unsqueeze"}


class Between:
    """Names the operators between a value and those before it that are looked at by themselves.

    Args:
        model: the graph.
        ends: values that are looked at.
    """

    def __init__(self, model: onnx.ModelProto, ends: Iterable[str]) -> None:
        self._places = {name: place for place, node in enumerate(model.graph.node) for name in node.output}
        self._graph = model.graph
        self._ends = set(ends)
        self._inputs = [value.name for value in model.graph.input]

    def __call__(self, value: str, *, from_inputs: bool = False) -> str:
        """Return the names of attention and norms, else of the last four.

        Args:
            value: what they lead to.
            from_inputs: say which inputs of the graph they come from.
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
        names = [name for name in names if name not in _MOVES]
        special = [name for name in names if "Attention" in name or "Normalization" in name or name == "Softmax"]
        between = ", ".join(special or names[-4:])
        inputs = [name for name in self._inputs if name in seen and not name.startswith("past_key_values.")]
        return f"from {', '.join(inputs)} through {between}" if from_inputs else between
