"""Read the tokenizer of a model folder."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from prosparse_models.errors import TrainingError

__all__ = ["load_tokenizer"]


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Return the tokenizer in ``folder``; no code from it runs.

    Raises:
        TrainingError: there is none that can be read.
    """
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise TrainingError(
            f"tokenizer: {folder}: cannot be read: {' '.join(str(error).split())}",
            hint="copy tokenizer.json and tokenizer_config.json beside config.json",
        ) from error
    for key in ("is_local", "local_files_only"):  # how it was read here is no property of the tokenizer
        tokenizer.init_kwargs.pop(key, None)
    return tokenizer
