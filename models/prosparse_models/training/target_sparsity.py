"""Adjust the schedule's peaks towards a target activation sparsity."""

from __future__ import annotations

__all__ = ["steer_stages"]

# Density falls slowly with lambda: the paper's fit (section 4.4, figure 3) has d log(density) / d log(lambda)
# between -0.2 and -0.35 for lambdas from 0.05 to 0.2. A gain of 3 is the inverse of its middle.
_GAIN = 3.0
_LIMIT = 4.0  # evaluations are noisy, and the schedule exists to avoid jumps of lambda


def steer_stages(stages: list[tuple[float, int]], done: int, sparsity: float, target: float) -> float:
    """Scale the peaks of the stages after ``done``, in place, so that sparsity moves to ``target``.

    The factor is ``((1 - sparsity) / (1 - target)) ** 3``, clamped to [1/4, 4]. Stages 0 and 1 change nothing: lambda
    has had no effect yet. The next stage starts from the current lambda, so lambda never jumps.

    Args:
        stages: (lambda, last_step) pairs.
        done: index of the stage that has just ended.
        sparsity: measured activation sparsity at its end, 0 to 1.
        target: target activation sparsity, between 0 and 1.

    Returns:
        The factor; 1.0 for no change.
    """
    if done < 2 or done + 1 >= len(stages):
        return 1.0
    factor: float = min(_LIMIT, max(1.0 / _LIMIT, ((1.0 - sparsity) / (1.0 - target)) ** _GAIN))
    for index in range(done + 1, len(stages)):
        peak, last = stages[index]
        stages[index] = (peak * factor, last)
    return factor
