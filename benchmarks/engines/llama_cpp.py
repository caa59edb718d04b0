"""llama.cpp: quantize a GGUF file and run it.

Its llama graph uses SiLU: other activations cost the same but give other tokens.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from engines.gguf_file import UnsupportedCheckpointError, write_gguf

__all__ = ["FILE_TYPES", "LlamaCpp", "UnsupportedCheckpointError", "quantize_gguf", "write_gguf"]

FILE_TYPES = {"Q8_0": 7, "Q4_0": 2, "Q4_K_S": 14, "Q4_K_M": 15}
"""llama_ftype of the mixtures that ``llama_model_quantize`` makes."""


def quantize_gguf(source: Path, path: Path, kind: str) -> Path:
    """Quantize the float GGUF file ``source`` as llama.cpp's own tool does, without an importance matrix."""
    import llama_cpp

    silent = llama_cpp.llama_log_callback(lambda *_: None)
    llama_cpp.llama_log_set(silent, ctypes.c_void_p(0))
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread = FILE_TYPES[kind], os.cpu_count() or 1
    if llama_cpp.llama_model_quantize(str(source).encode(), str(path).encode(), ctypes.byref(params)):
        raise OSError(f"llama_model_quantize: {kind} failed")
    return path


class LlamaCpp:
    """A GGUF file in llama.cpp, through its C interface; logits of the last token only, except in `logits`.

    ``cache_8_bits``: KV cache in q8_0, which needs flash attention, instead of float16.
    """

    def __init__(
        self, path: Path, threads: int, context: int, *, repacked: bool = True, cache_8_bits: bool = False
    ) -> None:
        import llama_cpp

        self._c = llama_cpp
        self._silent = llama_cpp.llama_log_callback(lambda *_: None)
        llama_cpp.llama_log_set(self._silent, ctypes.c_void_p(0))
        model = llama_cpp.llama_model_default_params()
        model.use_extra_bufts = repacked
        self._model = llama_cpp.llama_model_load_from_file(str(path).encode(), model)
        options = llama_cpp.llama_context_default_params()
        options.n_ctx, options.n_batch, options.n_ubatch = context, 512, 512
        if cache_8_bits:
            options.type_k = options.type_v = llama_cpp.GGML_TYPE_Q8_0
            options.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED
        options.n_threads = options.n_threads_batch = threads
        self._context = llama_cpp.llama_init_from_model(self._model, options)
        if not self._context:
            raise OSError(f"llama.cpp cannot open {path}")

    def _run(self, ids: np.ndarray) -> None:
        array = (self._c.llama_token * len(ids))(*ids.tolist())
        if self._c.llama_decode(self._context, self._c.llama_batch_get_one(array, len(ids))):
            raise OSError("llama_decode failed")

    def prefill(self, ids: np.ndarray, capacity: int) -> None:
        """Clear the KV cache, then run a prompt."""
        self._c.llama_memory_clear(self._c.llama_get_memory(self._context), True)
        for begin in range(0, len(ids), 512):
            self._run(ids[begin : begin + 512])
        self._c.llama_get_logits_ith(self._context, -1)[0]

    def decode(self, ids: np.ndarray) -> None:
        """Decode the tokens one by one."""
        for token in ids:
            self._run(np.array([token]))
            self._c.llama_get_logits_ith(self._context, -1)[0]

    def logits(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the logits of every token of a new sequence, ``[tokens, vocabulary]``; at most 512 tokens."""
        c = self._c
        c.llama_memory_clear(c.llama_get_memory(self._context), True)
        batch = c.llama_batch_init(len(ids), 0, 1)
        try:
            batch.n_tokens = len(ids)
            for i, token in enumerate(ids.tolist()):
                batch.token[i], batch.pos[i], batch.logits[i] = token, i, 1
                batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
            if c.llama_decode(self._context, batch):
                raise OSError("llama_decode failed")
        finally:
            c.llama_batch_free(batch)
        vocabulary = c.llama_vocab_n_tokens(c.llama_model_get_vocab(self._model))
        return np.ctypeslib.as_array(c.llama_get_logits(self._context), (len(ids), vocabulary)).copy()

    def close(self) -> None:
        """Free the context and the model."""
        self._c.llama_free(self._context)
        self._c.llama_model_free(self._model)
