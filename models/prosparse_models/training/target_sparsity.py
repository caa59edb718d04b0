"""Steer the schedule's peaks towards a wanted activation sparsity."""

from __future__ import annotations

__all__ = ["steer_stages"]

# Density falls slowly with lambda: the paper's fit (section 4.4, figure 3) has d log(density) / d log(lambda)
# between -0.2 and -0.35 for lambdas from 0.05 to 0.2. A gain of 3 is the inverse of its middle.
_GAIN = 3.0
_LIMIT = 4.0  # one evaluation is noisy, and a jump of lambda is what the schedule exists to avoid


def steer_stages(stages: list[tuple[float, int]], done: int, sparsity: float, target: float) -> float:
    """Scale the peaks of the stages after ``done`` so that sparsity moves to ``target``; in place.

    The factor is ``((1 - sparsity) / (1 - target)) ** 3``, between 1/4 and 4. Called after each stage
    from the second on: before, lambda has not acted yet. The stage that follows starts from the lambda
    that was reached, so lambda never jumps.

    Args:
        stages: (lambda, last_step) pairs.
        done: index of the stage that has just ended.
        sparsity: what was measured at its end, 0 to 1.
        target: what is wanted, between 0 and 1.

    Returns:
        The factor, 1.0 if nothing was changed.
    """
    if done < 2 or done + 1 >= len(stages):
        return 1.0
    factor: float = min(_LIMIT, max(1.0 / _LIMIT, ((1.0 - sparsity) / (1.0 - target)) ** _GAIN))
    for index in range(done + 1, len(stages)):
        peak, last = stages[index]
        stages[index] = (peak * factor, last)
    return factor
