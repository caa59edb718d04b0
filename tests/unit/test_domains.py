"""benchmarks/domains.py and engine_accuracy.py: perplexity and KL divergence on the windows of several texts."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray

from prosparse_export.text import default_text

BENCHMARKS = Path(__file__).parent.parent.parent / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
try:
    import accuracy
    import domains
    import engine_accuracy
finally:
    sys.path.remove(str(BENCHMARKS))

WINDOWS, LENGTH = 3, 24


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("texts")
    for name, first in (("one", 0), ("two", 50_000)):
        (folder / f"{name}.txt").write_text(default_text()[first : first + 2000], encoding="utf-8")
    return [folder / "one.txt", folder / "two.txt"]


@pytest.fixture(scope="module")
def measured(demo_folder: Path, texts: list[Path]) -> domains.Domains:
    return domains.Domains(demo_folder, domains.read_domains(demo_folder, texts, WINDOWS, LENGTH))


def own_logits(measured: domains.Domains) -> list[NDArray[np.float32]]:
    """The checkpoint's logits of each window, in order."""
    rows = np.asarray(measured._logits)
    return list(rows.reshape(-1, LENGTH, rows.shape[-1]))


def test_windows_are_the_beginning_of_each_text(demo_folder: Path, texts: list[Path]) -> None:
    from prosparse_models.loading.tokenizer import load_tokenizer

    found = domains.read_domains(demo_folder, texts, WINDOWS, LENGTH)
    assert [domain.name for domain in found] == ["one", "two"]
    for domain, text in zip(found, texts, strict=True):
        ids = load_tokenizer(demo_folder)(text.read_text(encoding="utf-8"))["input_ids"]
        assert domain.windows.flatten().tolist() == ids[: WINDOWS * LENGTH]


def test_a_short_text_is_an_error_with_a_hint_that_helps(demo_folder: Path, texts: list[Path]) -> None:
    with pytest.raises(SystemExit, match=r"one.txt: expected 20480 tokens, got \d+\nhint: pass --windows \d+") as error:
        domains.read_domains(demo_folder, texts, 1024, 20)
    count = int(str(error.value).rsplit(" ", 1)[1])
    assert len(domains.read_domains(demo_folder, texts[:1], count, 20)[0].windows) == count
    with pytest.raises(SystemExit, match="hint: pass a longer text"):
        domains.read_domains(demo_folder, texts, 1, 20_000)


def test_the_checkpoints_own_logits_differ_by_nothing(measured: domains.Domains) -> None:
    left = iter(own_logits(measured))
    found = measured.figures("own", lambda _: next(left))
    assert list(found) == ["one", "two"]
    for figures in found.values():
        assert figures.quality.kl_mean == 0
        assert figures.quality.perplexity_increase == 0
        assert figures.increase_error == figures.kl_error == 0
        assert figures.quality.tokens == WINDOWS * LENGTH
        assert 10 < figures.quality.perplexity < 1000  # of this model, on real text


def test_each_text_is_compared_with_its_own_logits(measured: domains.Domains) -> None:
    """Temperature 2 in one window of the second text: KL and perplexity from the definitions."""
    own = own_logits(measured)
    changed = [logits / 2 if i == WINDOWS else logits for i, logits in enumerate(own)]
    left = iter(changed)
    found = measured.figures("warm", lambda _: next(left))
    assert found["one"].quality.kl_mean == 0
    p, q = (np.float64(x) - np.logaddexp.reduce(np.float64(x), -1)[:, None] for x in (own[WINDOWS], changed[WINDOWS]))
    kl = float((np.exp(p) * (p - q)).sum(-1).mean())
    assert found["two"].quality.kl_mean == pytest.approx(kl / WINDOWS)
    assert found["two"].kl_error == pytest.approx(kl / WINDOWS)  # of [kl, 0, 0]
    targets = measured.domains[1].windows[0, 1:]
    change = float((p - q)[np.arange(LENGTH - 1), targets].mean())
    ratio = math.exp(change / WINDOWS)
    assert found["two"].quality.perplexity_increase == pytest.approx(ratio - 1)
    assert found["two"].increase_error == pytest.approx(abs(change) / WINDOWS * ratio)


def test_nan_does_not_pass_as_agreement(measured: domains.Domains) -> None:
    found = measured.figures("nan", lambda ids: np.full((len(ids), measured._logits.shape[1]), np.nan, np.float32))
    assert not any(figures.quality.kl_mean <= 1e9 for figures in found.values())


def test_the_bound_of_16_bits_allows_their_noise_and_little_more(measured: domains.Domains) -> None:
    """Errors of the logits with the standard deviation that the bound assumes, and ten times that."""
    own, matrices = own_logits(measured), 36
    deviation = 2.0**-11 / math.sqrt(3) * math.sqrt(2 * matrices) * measured.spread
    assert measured.spread == pytest.approx(float(np.sqrt(np.mean([row.var() for row in own[0]]))), rel=1e-5)
    bound, rng = measured.half_precision_bound(matrices), np.random.default_rng(0)
    for times, passes in ((1, True), (10, False)):
        left = iter([logits + np.float32(times * deviation) * rng.standard_normal(logits.shape) for logits in own])
        worst = max(f.quality.kl_mean for f in measured.figures("noise", lambda _, left=left: next(left)).values())
        assert (worst <= bound) is passes


def test_a_single_window_has_no_standard_error(demo_folder: Path, texts: list[Path]) -> None:
    one = domains.Domains(demo_folder, domains.read_domains(demo_folder, texts[:1], 1, LENGTH))
    assert math.isnan(one.figures("own", lambda _: own_logits(one)[0])["one"].kl_error)


def test_an_artifact_is_compared_on_every_text(
    demo_folder: Path, demo_artifact: Path, texts: list[Path], tmp_path: Path
) -> None:
    arguments = [str(demo_folder), "--engines", "--windows", "2", "--window", "32", "-o", str(tmp_path / "o.json")]
    for text in texts:
        arguments += ["--text", str(text)]
    result = CliRunner().invoke(accuracy.main, [*arguments, "--artifact", f"mine: {demo_artifact}"])
    assert result.exit_code == 0, result.output
    assert "2 windows of 32 tokens of one, two" in result.stdout
    assert "llama.cpp left out: its llama graph uses SiLU, this model" in result.stderr
    (model,) = json.loads((tmp_path / "o.json").read_text())
    (row,) = model["rows"]
    size = sum(path.stat().st_size for path in demo_artifact.parent.glob("demo.onnx*"))
    assert (row["name"], row["bytes"]) == ("ours, mine", size)
    for found in row["texts"].values():
        assert 0 <= found["quality"]["kl_mean"] < 1e-6  # float weights
        assert found["quality"]["tokens"] == 64
    line = next(line for line in result.stdout.splitlines() if line.startswith("| ours, mine"))
    first = row["texts"]["one"]["quality"]
    assert line.split(" | ")[1:3] == [f"{size / 1e6:.1f}", f"{first['perplexity']:.3f}"]


def test_engines_need_a_text(demo_folder: Path) -> None:
    result = CliRunner().invoke(accuracy.main, [str(demo_folder), "--engines"])
    assert result.exit_code == 2
    assert "--engines requires --text" in result.output


def test_a_checkpoint_without_counterpart_leaves_llama_cpp_out(
    demo_folder: Path,
    measured: domains.Domains,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "llama_cpp", ModuleType("llama_cpp"))  # is imported only
    monkeypatch.syspath_prepend(BENCHMARKS)
    config = json.loads((demo_folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "hidden_act": "silu", "model_type": "opt"}))
    assert not list(engine_accuracy._llama_cpp(tmp_path, measured, tmp_path, 1))
    assert "llama.cpp left out: expected model_type llama, got 'opt'" in capsys.readouterr().err
