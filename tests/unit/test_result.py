"""A validation as JSON."""

from __future__ import annotations

import json
import math

from support.validations import small_validation

from prosparse_export.validation import Quality


def test_json_has_no_bare_nan() -> None:
    quality = Quality("with library", 10, math.inf, 10.0, math.nan, 0.2, 0.9, 0.99, math.nan)
    values = json.loads(json.dumps(small_validation(quality=(quality,)).to_dict(), allow_nan=False))
    assert values["quality"][0]["kl_mean"] == "nan"
