"""Names of packed projections, such as ``model.layers.0.self_attn.q_proj+k_proj+v_proj``."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["PART_WIDTHS", "packed_name", "parts_of"]

PART_WIDTHS = "pkg.prosparse.part_widths"
"""Metadata of the MatMul of a packed projection: d_out of each part, separated by spaces."""


def packed_name(modules: Sequence[str]) -> str:
    """Return one name for sibling modules, in order; "" if they are not siblings."""
    parents = {module.rpartition(".")[0] for module in modules}
    leaves = [module.rpartition(".")[2] for module in modules]
    if len(parents) != 1 or not all(leaves) or any("+" in leaf for leaf in leaves):
        return ""
    return ".".join(filter(None, (*parents, "+".join(leaves))))


def parts_of(name: str) -> list[str]:
    """Return the module paths that ``name`` stands for, or ``name`` itself if it is one module."""
    parent, dot, leaves = name.rpartition(".")
    return [f"{parent}{dot}{leaf}" for leaf in leaves.split("+")]
