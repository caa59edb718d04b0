"""Read prosparse_calibration.json, the record of the search that found a model's thresholds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from prosparse_models.errors import CheckpointError

__all__ = ["CALIBRATION_FILE", "CALIBRATION_FORMAT", "read_calibration"]

CALIBRATION_FILE = "prosparse_calibration.json"
CALIBRATION_FORMAT = 2
_HINT = "delete the file: the model does not need it, and prosparse calibrate writes a new one"


def read_calibration(folder: Path, activation: str, hidden_act_param: object) -> dict[str, Any] | None:
    """Return the record in ``folder`` if it describes the thresholds in use, else None.

    Args:
        folder: a model folder.
        activation: the model's FFN activation, for example ``fatrelu``.
        hidden_act_param: its threshold, or one threshold per layer, as config.json states it.

    Raises:
        CheckpointError: the file is damaged or has another format version.
    """
    path = folder / CALIBRATION_FILE
    if activation != "fatrelu" or not path.is_file():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"calibration: {path}: expected JSON, got {error}", hint=_HINT) from error
    if not isinstance(record, dict) or record.get("format") != CALIBRATION_FORMAT:
        got = record.get("format") if isinstance(record, dict) else type(record).__name__
        raise CheckpointError(
            f"calibration: {path}: expected an object with format {CALIBRATION_FORMAT}, got {got!r}", hint=_HINT
        )
    return record if record.get("hidden_act_param") == hidden_act_param else None
