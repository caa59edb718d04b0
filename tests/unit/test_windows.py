"""Windows over tokenized text."""

from __future__ import annotations

import numpy as np
import pytest

from prosparse_export.text import Document, windows


@pytest.mark.parametrize(
    ("length", "context", "stride"), [(16, 512, 256), (1000, 128, 64), (1000, 100, 100), (33, 8, 3)]
)
def test_windows_count_every_token_once(length: int, context: int, stride: int) -> None:
    documents = [Document("a", np.arange(length)), Document("b", np.arange(length, length + 20))]
    counted: list[int] = []
    for window in windows(documents, context, stride):
        assert len(window.ids) <= context
        counted += window.ids[window.first :].tolist()
        if window.ids[0] not in (0, length):
            assert window.first >= context - stride
        following = np.append(window.ids[window.first + 1 :], window.targets[-1])
        np.testing.assert_array_equal(window.targets, following)
        assert window.targets[-1] in (-1, window.ids[-1] + 1)
    assert counted == list(range(length + 20))
