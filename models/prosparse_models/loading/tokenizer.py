"""Load the tokenizer of a model folder."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from prosparse_models.errors import CheckpointError

__all__ = ["load_tokenizer"]

_HINT = "copy the tokenizer's files, such as tokenizer.json and tokenizer_config.json, into the model folder"


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Return the tokenizer in ``folder``, fast or slow; no code from the folder runs.

    Raises:
        CheckpointError: the folder has no tokenizer, or it cannot be read.
    """
    if not folder.is_dir() or not any("token" in path.name or path.suffix == ".model" for path in folder.iterdir()):
        raise CheckpointError(f"tokenizer: {folder}: expected tokenizer.json, got no tokenizer", hint=_HINT)
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise CheckpointError(
            f"tokenizer: {folder}: cannot be read: {' '.join(str(error).split())[:300]}", hint=_HINT
        ) from error
    for key in ("is_local", "local_files_only"):  # arguments of this call, not properties of the tokenizer
        tokenizer.init_kwargs.pop(key, None)
    return tokenizer
