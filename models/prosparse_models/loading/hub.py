"""A model by its name on the Hugging Face Hub: downloaded once, then taken from the Hub's cache."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from prosparse_models.errors import CheckpointError

__all__ = ["find_model_folder"]

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]  # no code, no pickles, no other formats


def find_model_folder(model: Path, *, trust_remote_code: bool = False, progress: Callable[[str], None]) -> Path:
    """Return the folder of ``model``: itself, or the Hub's copy if it reads ORG/NAME and no such path exists.

    Only safetensors weights are fetched. Environment variables of huggingface_hub hold (HF_HOME, HF_TOKEN,
    HF_ENDPOINT, HF_HUB_OFFLINE).

    Args:
        model: a folder, or ORG/NAME.
        trust_remote_code: fetch the repository's Python files too.
        progress: called with a line before a download begins.

    Raises:
        CheckpointError: there is no such folder, and none on the Hub or no way to reach it.
    """
    if model.exists():
        return model
    name = model.as_posix()
    if not _HUB_ID.fullmatch(name):
        raise CheckpointError(
            f"model folder: {model}: expected a folder or a name on the Hugging Face Hub (ORG/NAME), got nothing there",
            hint="give the folder that holds config.json and the *.safetensors files",
        )
    from huggingface_hub import snapshot_download

    progress(f"{name}: no such folder here: fetch it from the Hugging Face Hub")
    try:
        files = [*_FILES, "*.py"] if trust_remote_code else _FILES
        return Path(snapshot_download(name, allow_patterns=files))
    except (OSError, ValueError) as error:  # its own errors are these, or have these among their bases
        raise CheckpointError(
            f"model: {name}: no such folder here, and the Hugging Face Hub does not give it: {_reason(error)}",
            hint=f"check the name; without a network: hf download {name} --local-dir FOLDER on another machine, "
            "then give FOLDER",
        ) from error


def _reason(error: Exception) -> str:
    """Return the first sentence of huggingface_hub's message, which runs over several lines."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {re.split(r'(?<=[.])(?: |$)', text, maxsplit=1)[0][:200]}"
