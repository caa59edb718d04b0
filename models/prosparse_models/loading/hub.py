"""Find a model by its name on the Hugging Face Hub: downloaded once, cached afterwards."""

from __future__ import annotations

import re
from pathlib import Path

from prosparse_export.progress import ProgressCallback, no_progress
from prosparse_models.errors import CheckpointError

__all__ = ["find_model_folder"]

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]  # no code, no pickles, no other formats


def find_model_folder(
    model: Path, *, trust_remote_code: bool = False, progress: ProgressCallback = no_progress
) -> Path:
    """Return the folder of ``model``: the path itself if it exists, else the Hub's copy of ORG/NAME.

    If a folder named ORG exists, ORG/NAME is taken for a path.

    Only safetensors weights are downloaded. The environment variables of huggingface_hub apply (HF_HOME, HF_TOKEN,
    HF_ENDPOINT, HF_HUB_OFFLINE).

    Args:
        model: a folder, or ORG/NAME.
        trust_remote_code: download the repository's Python files too.
        progress: called before a download.

    Raises:
        CheckpointError: there is no such folder, and no such model on the Hub or no connection to it.
    """
    if model.exists():
        return model
    name = model.as_posix()
    if not _HUB_ID.fullmatch(name):
        raise CheckpointError(
            f"model folder: {model}: no such folder, and not a name on the Hugging Face Hub (ORG/NAME)",
            hint="pass the folder that contains config.json and the *.safetensors files",
        )
    if model.parent.is_dir():
        raise CheckpointError(
            f"model folder: {model}: no such folder in {model.parent}",
            hint=f"check the path; to use {name} from the Hugging Face Hub, run in a directory without {model.parent}/",
        )
    from huggingface_hub import snapshot_download

    progress(f"download {name} from the Hugging Face Hub", 0, 0)
    try:
        files = [*_FILES, "*.py"] if trust_remote_code else _FILES
        return Path(snapshot_download(name, allow_patterns=files))
    except (OSError, ValueError) as error:  # its errors derive from these
        raise CheckpointError(
            f"model: {name}: not a local folder, and the Hugging Face Hub download failed: {_reason(error)}",
            hint=f"check the name; if offline, run hf download {name} --local-dir FOLDER elsewhere and copy FOLDER",
        ) from error


def _reason(error: Exception) -> str:
    """Return the first sentence of huggingface_hub's multi-line message."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {re.split(r'(?<=[.])(?: |$)', text, maxsplit=1)[0][:200]}"
