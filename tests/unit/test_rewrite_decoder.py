"""Loading, tracing and rewriting a decoder: what fails before tracing."""

from __future__ import annotations

from pathlib import Path

import pytest

from prosparse_export.errors import ProSparseError
from prosparse_export.export import decoder
from prosparse_export.export.file_hashes import FileHashes
from prosparse_export.export.options import ExportOptions
from prosparse_export.progress import no_progress

DEMO = Path(__file__).parents[2] / "models" / "demo"


def test_a_text_that_is_too_short_fails_before_tracing(monkeypatch: pytest.MonkeyPatch) -> None:
    def trace(_: object) -> None:
        raise AssertionError("traced")

    monkeypatch.setattr(decoder, "trace", trace)
    texts = [("long.txt", "All of this is text. " * 20), ("short.txt", "Too short.")]
    with FileHashes() as hashes:
        with pytest.raises(ProSparseError, match=r"text: short\.txt: expected at least 16 tokens, got") as caught:
            decoder.rewrite_decoder(DEMO, ExportOptions(), texts, no_progress, hashes)
        assert caught.value.hint == "use a longer text"
        with pytest.raises(AssertionError, match="traced"):
            decoder.rewrite_decoder(DEMO, ExportOptions(), texts[:1], no_progress, hashes)
