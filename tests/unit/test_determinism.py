"""Repeated runs are compared bit for bit, across thread counts on request."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import pytest
from numpy.typing import NDArray

from prosparse_export.text import Window
from prosparse_export.validation.determinism import check_determinism

IDS = np.arange(3, 43)
WINDOWS = [Window(0, IDS, 0, np.append(IDS[1:], -1)), Window(1, IDS[:20], 0, IDS[1:21])]


class Model:
    """Logits are the token ids; with several threads the sign of a zero differs."""

    races: ClassVar[bool] = False

    def __init__(self, threads: int) -> None:
        self._threads = threads

    @classmethod
    def open(cls, _path: str, *, threads: int) -> Model:
        return cls(threads)

    def forward(self, ids: NDArray[np.int64], _mask: NDArray[np.int64], _cache: Any = None) -> tuple[Any, None]:
        logits = np.repeat(ids[..., None], 4, axis=-1).astype(np.float32)
        logits[..., 2] = -0.0 if self.races and self._threads > 1 else 0.0
        return logits, None


class Racing(Model):
    races = True


def check(model: type[Model], *, threads: int, whole: bool) -> Any:
    return check_determinism("x.onnx", WINDOWS, threads=threads, whole=whole, open_model=model)  # type: ignore[arg-type]


@pytest.mark.parametrize(("whole", "threads", "tokens"), [(False, (1, 1, 1), 56), (True, (1, 2), 56 + 36)])
def test_identical_runs_pass(whole: bool, threads: tuple[int, ...], tokens: int) -> None:
    result = check(Model, threads=1, whole=whole)
    assert (result.passed, result.first, result.threads, result.tokens) == (True, "", threads, tokens)


def test_a_difference_between_thread_counts_needs_whole() -> None:
    assert check(Racing, threads=1, whole=False).passed
    result = check(Racing, threads=1, whole=True)
    assert not result.passed
    assert result.differing == result.tokens  # one logit in each position
    assert result.first == "window 0, token 0, run 2 (2 threads) against run 1 (1)"
