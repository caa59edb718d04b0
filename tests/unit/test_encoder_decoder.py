"""Options that do not apply to encoder-decoders are errors, before the model is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from prosparse_export import ExportOptions, ProSparseError
from prosparse_export.export.encoder_decoder import rewrite_encoder_decoder
from prosparse_export.export.options import Approximation
from prosparse_export.progress import no_progress

TEXT = (Path("text.txt"),)


@pytest.mark.parametrize(
    ("options", "option"),
    [
        (ExportOptions(profile_texts=TEXT), "--profile-text"),
        (ExportOptions(approximate=Approximation(0.5, TEXT)), "--approximate"),
        (ExportOptions(other_weights="i8"), "--weights"),
        (ExportOptions(weights="i4", target_bytes=1), "--target-size"),
        (ExportOptions(weights="i4", max_ppl_increase=0.1), "--max-ppl-increase"),
        (ExportOptions(weights="i4", rounding="compensated"), "--rounding"),
    ],
)
def test_unsupported_options(options: ExportOptions, option: str, tmp_path: Path) -> None:
    with pytest.raises(ProSparseError, match="encoder-decoder") as caught:
        rewrite_encoder_decoder(tmp_path, options, no_progress)
    assert option in (caught.value.hint or "")
