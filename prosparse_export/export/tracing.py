"""How torch traces: silently, and without three habits that cost half of the time."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator

import torch._dynamo.config

from prosparse_export.collection import collection_paused
from prosparse_export.export.decompositions import decomposed_in_place
from prosparse_export.quiet import quiet

__all__ = ["tracing"]


@contextlib.contextmanager
def tracing() -> Iterator[None]:
    """Prepare for torch.export and the translation to ONNX, and put everything back at the end."""
    with (
        quiet(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
        torch._dynamo.config.patch(fake_tensor_cache_enabled=False),  # costs more than it saves with dynamic sizes
        decomposed_in_place(),
        collection_paused(),
    ):
        yield
