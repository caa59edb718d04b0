"""Adjusting the schedule to a target sparsity."""

from __future__ import annotations

import pytest

from prosparse_models.training.target_sparsity import steer_stages


def test_steering_moves_later_peaks_only() -> None:
    stages = [(0.0, 5), (1.0, 10), (2.0, 20), (2.0, 30), (4.0, 40)]
    assert steer_stages(stages, 1, 0.5, 0.9) == 1.0  # lambda has not acted yet
    assert steer_stages(stages, 2, 0.8, 0.9) == 4.0  # (0.2 / 0.1) ** 3, limited
    assert stages == [(0.0, 5), (1.0, 10), (2.0, 20), (8.0, 30), (16.0, 40)]
    assert steer_stages(stages, 3, 0.92, 0.9) == pytest.approx(0.512)
    assert stages[3:] == [(8.0, 30), (pytest.approx(8.192), 40)]
    assert steer_stages(stages, 4, 0.5, 0.9) == 1.0  # nothing is left to steer
