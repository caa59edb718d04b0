"""Quality against PyTorch's own formulas, differences with NaN and infinity."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.validations import random_logits

from prosparse_export.validation.checks import limit_checks
from prosparse_export.validation.limits import Limits
from prosparse_export.validation.metrics import Difference, QualitySum


def test_quality_equals_pytorch() -> None:
    expected, targets = random_logits(0), np.random.default_rng(2).integers(0, 40, 150)
    actual = expected + random_logits(1) / 10
    targets[-1] = -1
    total = QualitySum("x")
    for part in (slice(0, 7), slice(7, 100), slice(100, 150)):
        total.add(actual[part], expected[part], targets[part])
    q = total.result()
    log_p, log_q = (torch.from_numpy(v).double().log_softmax(-1) for v in (expected, actual))
    kl = torch.nn.functional.kl_div(log_q, log_p, log_target=True, reduction="none").sum(-1)
    loss = torch.nn.functional.cross_entropy(torch.from_numpy(actual).double()[:-1], torch.from_numpy(targets[:-1]))
    assert q.tokens == 150
    assert q.perplexity == pytest.approx(loss.exp().item(), rel=1e-12)
    assert q.kl_mean == pytest.approx(kl.mean().item(), rel=1e-9)
    assert q.kl_max == pytest.approx(kl.max().item(), rel=1e-9)
    assert q.top1 == (actual.argmax(-1) == expected.argmax(-1)).mean() < 1
    top5 = torch.from_numpy(expected).topk(5).indices.numpy()
    assert q.top5 == np.mean([a.argmax() in t for a, t in zip(actual, top5, strict=True)])
    assert q.max_abs_diff == np.abs(actual - expected).max()
    assert q.perplexity_increase == q.perplexity / q.reference_perplexity - 1


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_fail_every_limit(bad: float) -> None:
    expected = random_logits(0)
    actual = expected.copy()
    actual[70, 3] = bad
    total, difference = QualitySum("x"), Difference()
    total.add(actual, expected, np.zeros(150, np.int64))
    difference.add(actual, expected, bound=1e-3)
    difference.add(expected, expected, bound=1e-3)
    assert difference.first == 70
    q = total.result()
    assert not difference.max_abs_diff <= 1e-3
    assert not q.max_abs_diff <= 1e30
    if bad != -np.inf:  # -inf is a token of probability 0: only its own logit is wrong
        assert not q.perplexity_increase <= 1.0
        assert not q.kl_mean <= 1.0
        assert q.top1 < 1
        limits = Limits(max_ppl_increase=1.0, max_kl=1e9)
        assert [c.passed for c in limit_checks(limits, q, None, (), 0)] == [False, False]


def test_first_position_beyond_the_bound_is_kept() -> None:
    difference = Difference()
    expected = random_logits(0)
    difference.add(expected, expected, bound=1e-3)
    assert difference.first == -1
    actual = expected.copy()
    actual[100, 5] += 0.01
    actual[120, 5] += 0.01
    difference.add(actual, expected, bound=1e-3)
    assert difference.first == 150 + 100
