"""`prosparse validate`: a long context is measured without --max-tokens."""

from __future__ import annotations

import pytest

from prosparse_export.cli.validate import tokens_by_default


@pytest.mark.parametrize(
    ("context", "files", "expected"), [(512, 0, 2048), (4096, 0, 4096), (4096, 3, 12288), (8, 2, 2048)]
)
def test_every_file_has_a_window(context: int, files: int, expected: int) -> None:
    assert tokens_by_default(context, files) == expected
