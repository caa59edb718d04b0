"""prosparse_calibration.json: what a threshold search tried, kept in the folder of the model that it made."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prosparse_models.errors import CheckpointError
from prosparse_models.training.calibration import Calibration

__all__ = ["CALIBRATION_FILE", "calibration_record", "read_calibration"]

CALIBRATION_FILE = "prosparse_calibration.json"
_FORMAT = 1


def calibration_record(
    result: Calibration, *, budget: float, per_layer: bool, hidden_act_param: float | Sequence[float]
) -> dict[str, Any]:
    """Return what goes into `CALIBRATION_FILE`.

    Args:
        result: the search.
        budget: allowed rise of perplexity, a share.
        per_layer: the search was over energy dropped, not over one threshold.
        hidden_act_param: the chosen FATReLU threshold as config.json states it: a number, or a list, one per layer.

    Returns:
        For JSON: ``knob`` (what was searched), ``budget``, ``perplexity_limit``, ``tokens``, ``hidden_act_param``,
        ``chosen`` (a trial) and ``trials`` by rising knob, each with ``knob``, ``thresholds`` (one per layer, in units
        of the pre-activation), ``sparsity`` (0 to 1, mean over layers), ``perplexity`` and ``within`` (the budget).
    """
    trials = [
        {
            "knob": trial.knob,
            "sparsity": trial.measurement.sparsity,
            "perplexity": trial.measurement.perplexity,
            "within": trial.within,
            "thresholds": list(trial.thresholds),
        }
        for trial in result.trials
    ]
    return {
        "format": _FORMAT,
        "knob": "energy dropped" if per_layer else "threshold",
        "budget": budget,
        "perplexity_limit": result.limit,
        "tokens": result.chosen.measurement.tokens,
        "hidden_act_param": hidden_act_param,
        "chosen": trials[result.trials.index(result.chosen)],
        "trials": trials,
    }


def read_calibration(folder: Path, activation: str, hidden_act_param: object) -> dict[str, Any] | None:
    """Return the record in ``folder`` if it is about the thresholds in use, else None.

    Args:
        folder: a model folder.
        activation: what the model's FFNs compute, for instance ``fatrelu``.
        hidden_act_param: its threshold, or thresholds by layer, as `calibration_record` got it.

    Raises:
        CheckpointError: the file is damaged, or of another version's format.
    """
    path = folder / CALIBRATION_FILE
    if activation != "fatrelu" or not path.is_file():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"calibration: {path}: expected JSON, got {error}", hint=_HINT) from error
    if not isinstance(record, dict) or record.get("format") != _FORMAT:
        got = record.get("format") if isinstance(record, dict) else type(record).__name__
        raise CheckpointError(f"calibration: {path}: expected an object with format {_FORMAT}, got {got!r}", hint=_HINT)
    if record.get("hidden_act_param") != hidden_act_param:
        return None
    return record


_HINT = "delete the file: the model does not need it, and prosparse calibrate writes it anew"
