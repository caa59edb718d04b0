"""``--accuracy-level``, of ``export`` and ``optimize``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

__all__ = ["accuracy_level_option"]

_Function = TypeVar("_Function", bound=Callable[..., Any])


def accuracy_level_option() -> Callable[[_Function], _Function]:
    """Return the option; its value is 0 or 4."""
    return click.option(
        "--accuracy-level",
        type=click.Choice(["0", "1", "4"]),
        default="0",
        show_default=True,
        callback=lambda _context, _option, value: 4 if value == "4" else 0,
        help="How exact the kernels of integer formats must be, as in onnxruntime's MatMulNBits. 0, 1: activations are "
        "not rounded to fewer than 16 bits. 4: LOSSY: they may be rounded to 8 bits, which makes prompts faster.",
    )
