"""Metrics against scipy-free formulas, windows, limits, reference files, reports."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray

from prosparse_export.errors import ProSparseError
from prosparse_export.text.windows import Document, read_text, windows
from prosparse_export.validation.determinism import Determinism
from prosparse_export.validation.exactness import greedy_match
from prosparse_export.validation.limits import Limits, parse_share, parse_sparsity, read_limits
from prosparse_export.validation.logit_file import LogitFile, LogitWriter
from prosparse_export.validation.metrics import Difference, Quality, QualitySum
from prosparse_export.validation.operator_checks import layer_of
from prosparse_export.validation.ops_between import OpsBetween
from prosparse_export.validation.reference import Continuation, cut_prompts
from prosparse_export.validation.render import as_junit, as_markdown, as_text
from prosparse_export.validation.result import Check, Sparsity, Validation, check_limits


def logits(seed: int, tokens: int = 150, vocabulary: int = 40) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((tokens, vocabulary)).astype(np.float32) * 3


def test_quality_is_torchs() -> None:
    expected, targets = logits(0), np.random.default_rng(2).integers(0, 40, 150)
    actual = expected + logits(1) / 10
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
def test_a_number_that_is_none_breaks_everything(bad: float) -> None:
    expected = logits(0)
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
    if bad != -np.inf:  # a token of no likelihood is a fault of logits, and of no share but its own
        assert not q.perplexity_increase <= 1.0
        assert not q.kl_mean <= 1.0
        assert q.top1 < 1
        limits = Limits(max_ppl_increase=1.0, max_kl=1e9)
        assert [c.passed for c in check_limits(limits, q, None, (), 0)] == [False, False]


@pytest.mark.parametrize(
    ("length", "context", "stride"), [(16, 512, 256), (1000, 128, 64), (1000, 100, 100), (33, 8, 3)]
)
def test_windows_count_every_token_once(length: int, context: int, stride: int) -> None:
    documents = [Document("a", np.arange(length)), Document("b", np.arange(length, length + 20))]
    counted: list[int] = []
    for window in windows(documents, context, stride):
        assert len(window.ids) <= context
        counted += window.ids[window.first :].tolist()
        if window.ids[0] not in (0, length):
            assert window.first >= context - stride
        following = np.append(window.ids[window.first + 1 :], window.targets[-1])
        np.testing.assert_array_equal(window.targets, following)
        assert window.targets[-1] in (-1, window.ids[-1] + 1)
    assert counted == list(range(length + 20))


def test_prompts_have_different_lengths_and_places() -> None:
    prompts = cut_prompts([Document("a", np.arange(3000)), Document("b", np.arange(5000, 5100))], 5, 512)
    assert [len(p) for p in prompts] == [256, 100, 64, 67, 256]
    assert len({int(p[0]) for p in prompts}) == 5


def test_greedy_match_ends_at_the_first_difference() -> None:
    c = Continuation(np.zeros(1, np.int64), logits(0), np.array([1, 2, 3, 4]), np.zeros(4, np.float32))
    assert greedy_match(np.array([1, 2, 9, 4]), c) == 2
    assert greedy_match(np.array([1, 2, 3, 4]), c) == 4


def write(target: Path | None, scratch: Path, rows: NDArray[np.float32]) -> LogitFile:
    small: dict[str, NDArray[Any]] = {"prompt.0.greedy": np.arange(5), "prompt.0.logits": rows[:3]}
    writer = LogitWriter(target, scratch, {"texts": "t"}, small, len(rows), rows.shape[1])
    writer.add(rows[:70])
    writer.add(rows[70:])
    return writer.finish()


@pytest.mark.parametrize("named", [True, False])
def test_logit_file_gives_back_what_went_in(named: bool, tmp_path: Path) -> None:
    rows = logits(0)
    file = write(tmp_path / "x.ref" if named else None, tmp_path, rows)
    np.testing.assert_array_equal(file.logits(60, 30), rows[60:90])
    np.testing.assert_array_equal(file.tensor("prompt.0.greedy"), np.arange(5))
    np.testing.assert_array_equal(file.tensor("prompt.0.logits"), rows[:3])
    assert file.metadata["texts"] == "t"
    file.close()
    assert [p.name for p in tmp_path.iterdir()] == (["x.ref"] if named else [])


def test_logit_file_is_safetensors(tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    write(tmp_path / "x.ref", tmp_path, logits(0)).close()
    np.testing.assert_array_equal(load_file(tmp_path / "x.ref")["logits"], logits(0))


@pytest.mark.parametrize(
    ("cut", "text"), [(-1, "it is cut off"), (4, "got something else"), (-50_000, "got something")]
)
def test_damaged_logit_file(cut: int, text: str, tmp_path: Path) -> None:
    path = tmp_path / "x.ref"
    write(path, tmp_path, logits(0)).close()
    data = path.read_bytes()
    path.write_bytes(data[:cut] if cut != -50_000 else b"\xff" * 100 + data)
    with pytest.raises(ProSparseError, match=text) as caught:
        LogitFile.open(path)
    assert caught.value.hint is not None


def test_shares_and_sparsities() -> None:
    assert parse_share("0.5%", "x") == 0.005
    assert parse_share("99.5 %", "x") == 0.995
    assert parse_share(0.25, "x") == parse_share("0.25", "x") == 0.25
    limits = parse_sparsity(["80%", "layer 7: 85%", "Layer 0:0.5"])
    assert (limits.min_sparsity, limits.min_sparsity_by_layer) == (0.8, {7: 0.85, 0: 0.5})
    for text in ("much", "101%", "80", "-1%", "nan"):
        with pytest.raises(ProSparseError):
            parse_share(text, "x")


def test_limits_file(tmp_path: Path) -> None:
    path = tmp_path / "limits.toml"
    path.write_text('max_ppl_increase = "0.5%"\nmax_kl = 0.01\nmin_top1 = 0.99\n[min_sparsity_by_layer]\n7 = "85%"\n')
    limits = read_limits(path)
    assert limits == Limits(0.005, 0.99, None, 0.01, None, {7: 0.85})
    merged = limits.updated(Limits(max_kl=0.5, min_sparsity_by_layer={1: 0.1}))
    assert merged == Limits(0.005, 0.99, None, 0.5, None, {7: 0.85, 1: 0.1})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max_perplexity = 3", "unknown key 'max_perplexity'"),
        ("[limits]\nmax_kl = 1", "unknown key 'limits'"),
        ("max_kl = ", "expected TOML"),
        ('max_kl = "1%"', "expected a number"),
        ("min_top1 = 99.5", "expected 0% to 100%"),
        ("min_top1 = true", "expected a share"),
        ("min_sparsity_by_layer = 3", "expected a table"),
    ],
)
def test_bad_limits_file(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "limits.toml").write_text(text)
    with pytest.raises(ProSparseError, match=message) as caught:
        read_limits(tmp_path / "limits.toml")
    assert caught.value.hint is not None


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty"),
        (b" \n", "empty"),
        (b"ab\0cd", "binary"),
        ("über".encode("utf-16"), "UTF-16"),
        ("über".encode("latin-1"), "another encoding"),
    ],
)
def test_bad_text(data: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_bytes(data)
    with pytest.raises(ProSparseError, match=message) as caught:
        read_text(tmp_path / "x.txt")
    assert str(tmp_path) in str(caught.value)
    assert caught.value.hint is not None


def result(**fields: Any) -> Validation:
    quality = Quality("with library", 10, 11.0, 10.0, 0.1, 0.2, 0.9, 0.99, 0.5)
    checks = (Check("a <b> check", "1", "at most 2", True), Check("top-1 agreement", "90%", "at least 99%", False))
    values: dict[str, Any] = {
        "comparisons": (),
        "max_abs_diff": 1e-3,
        "exact_against": "PyTorch",
        "quality": (quality, quality),
        "lossy": False,
        "greedy_match": (3, 4),
        "greedy_tokens": 4,
        "sparsity": Sparsity(0.85, (0.8, 0.9), 10, (0, 1)),
        "operators": (),
        "stored_weights": None,
        "determinism": Determinism((1, 2), 10, 0, ""),
        "unknown_operators": (),
        "checks": checks,
        "findings": (),
        "quantization_costs": (),
        "explained": False,
        "tokens": 10,
        "texts": {"x.txt": "00"},
        "artifact": {"name": "x.onnx", "sha256": "00", "bytes": 5, "weights": "f32"},
        "versions": {},
        "seconds": {"PyTorch": 1.5},
    }
    return Validation(**{**values, **fields})


def test_reports_name_what_is_broken() -> None:
    r = result()
    assert "BROKEN top-1 agreement: measured 90%; allowed at least 99%" in as_text(r).splitlines()
    assert "| top-1 agreement | 90% | at least 99% | **FAIL** |" in as_markdown(r).splitlines()
    suite = ET.fromstring(as_junit(r))
    assert (suite.get("tests"), suite.get("failures")) == ("2", "1")
    assert "Greedy tokens as PyTorch's, by prompt: 3, 4 of 4" in as_markdown(r).splitlines()
    failures = {case.get("name"): case.find("failure") for case in suite.iter("testcase")}
    assert failures["a <b> check"] is None
    assert failures["top-1 agreement"].get("message") == "measured 90%; allowed at least 99%"  # type: ignore[union-attr]
    assert not r.passed


def test_json_has_no_bare_nan() -> None:
    import json

    quality = Quality("with library", 10, math.inf, 10.0, math.nan, 0.2, 0.9, 0.99, math.nan)
    values = json.loads(json.dumps(result(quality=(quality,)).to_dict(), allow_nan=False))
    assert values["quality"][0]["kl_mean"] == "nan"


def test_every_limit_can_break_and_hold() -> None:
    q, s = result().quality[0], result().sparsity
    broken = Limits(0.05, 0.95, 0.995, 0.05, 0.9, {0: 0.85, 5: 0.1}, 0.99)
    checks = check_limits(broken, q, s, (3, 4), 4)
    assert len(checks) == 8
    assert not any(c.passed for c in checks), checks
    held = Limits(0.2, 0.9, 0.99, 0.1, 0.85, {0: 0.8, 1: 0.9}, 0.875)
    assert all(c.passed for c in check_limits(held, q, s, (3, 4), 4))


def test_layers_are_the_models_own_where_some_stay_dense() -> None:
    q = result().quality[0]
    sparse = Sparsity(0.85, (0.8, 0.9), 10, (0, 7))
    broken, missing, held = check_limits(Limits(min_sparsity_by_layer={0: 0.85, 1: 0.1, 7: 0.85}), q, sparse, (3, 4), 4)
    assert (broken.passed, missing.passed, held.passed) == (False, False, True)
    assert missing.measured == "no such sparse layer"
    assert "by layer: 0: 80.0% 7: 90.0%" in as_text(result(sparsity=sparse))


def test_first_position_beyond_the_bound_is_kept() -> None:
    difference = Difference()
    expected = logits(0)
    difference.add(expected, expected, bound=1e-3)
    assert difference.first == -1
    actual = expected.copy()
    actual[100, 5] += 0.01
    actual[120, 5] += 0.01
    difference.add(actual, expected, bound=1e-3)
    assert difference.first == 150 + 100


def test_layer_of_a_module() -> None:
    assert layer_of("model.layers.12.mlp") == 12
    assert layer_of("transformer.h.3") == 3
    assert layer_of("lm_head") is None


def test_what_lies_between() -> None:
    make = onnx.helper.make_node
    nodes = [
        make("Gather", ["table", "ids"], ["e"]),
        make("SimplifiedLayerNormalization", ["e", "w"], ["n"]),
        make("MatMul", ["n", "q"], ["qx"]),
        make("Reshape", ["qx", "s"], ["qr"]),
        make("GroupQueryAttention", ["qr", "mask"], ["a"]),
        make("Add", ["a", "e"], ["h"]),
    ]
    inputs = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.INT64, [1]) for name in ("ids", "mask", "past")]
    outputs = [onnx.helper.make_tensor_value_info("h", onnx.TensorProto.FLOAT, [1])]
    model = onnx.helper.make_model(onnx.helper.make_graph(nodes, "g", inputs, outputs))
    between = OpsBetween(model, {"qx"})
    assert between("n", from_inputs=True) == "from ids through SimplifiedLayerNormalization"
    assert between("a") == "GroupQueryAttention"
    assert between("qr") == ""
    assert between("e") == "Gather"
