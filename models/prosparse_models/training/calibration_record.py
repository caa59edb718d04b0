"""Make prosparse_calibration.json, the record of a threshold search, for the folder of the calibrated model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from prosparse_models.loading.calibration_file import CALIBRATION_FORMAT
from prosparse_models.training.calibration import Calibration

__all__ = ["calibration_record"]


def calibration_record(
    result: Calibration, *, budget: float, per_layer: bool, hidden_act_param: float | Sequence[float]
) -> dict[str, Any]:
    """Return the content of `CALIBRATION_FILE`.

    Args:
        result: the search.
        budget: allowed increase in perplexity, as a fraction.
        per_layer: the search was over the fraction of energy dropped, not over one threshold.
        hidden_act_param: the chosen FATReLU threshold as config.json states it: a number, or a list with one per layer.

    Returns:
        For JSON: ``search_parameter`` (``threshold`` or ``energy dropped``), ``budget``, ``perplexity_limit``,
        ``tokens``, ``hidden_act_param``, ``chosen`` (a trial) and ``trials`` by increasing value, each with ``value``
        (of the search parameter), ``thresholds`` (one per layer, in units of the pre-activation), ``sparsity`` (0 to
        1, mean over layers), ``perplexity`` and ``within`` (the budget).
    """
    trials = [
        {
            "value": trial.value,
            "sparsity": trial.measurement.sparsity,
            "perplexity": trial.measurement.perplexity,
            "within": trial.within,
            "thresholds": list(trial.thresholds),
        }
        for trial in result.trials
    ]
    return {
        "format": CALIBRATION_FORMAT,
        "search_parameter": "energy dropped" if per_layer else "threshold",
        "budget": budget,
        "perplexity_limit": result.limit,
        "tokens": result.chosen.measurement.tokens,
        "hidden_act_param": hidden_act_param,
        "chosen": trials[result.trials.index(result.chosen)],
        "trials": trials,
    }
