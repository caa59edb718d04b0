"""Our artifact, through the runtime of prosparse_export."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

import prosparse_export
from prosparse_export.runtime.decode_loop import Decoder


class Ours:
    """An artifact, or a graph like one; ``dense``: the same kernels compute every neuron."""

    def __init__(self, path: Path, threads: int, *, dense: bool = False, library: bool = True) -> None:
        os.environ["PROSPARSE_DENSE"] = "1" if dense else "0"  # read when the session creates its kernels
        self._model = prosparse_export.load(path, threads=threads, library=library)
        os.environ["PROSPARSE_DENSE"] = "0"
        self._decoder: Decoder | None = None

    def prefill(self, ids: np.ndarray, capacity: int) -> None:
        """Run a prompt with an empty KV cache."""
        self._decoder = self._model.decoder(1, capacity)
        self._decoder.prefill(ids[None], np.ones((1, len(ids)), np.int64)).argmax()

    def decode(self, ids: np.ndarray) -> None:
        """Decode the tokens one by one."""
        assert self._decoder is not None
        for token in ids:
            self._decoder.step(token).argmax()
