"""A model that takes fewer tokens than commands would give by themselves."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from prosparse_export import ProSparseError, export_model, load
from prosparse_export.cli import main
from prosparse_export.text import default_text

pytestmark = pytest.mark.integration
LONGEST = 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, demo_folder: Path) -> Path:
    folder = Path(shutil.copytree(demo_folder, tmp_path_factory.mktemp("short") / "model"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": LONGEST}))
    return folder


@pytest.fixture(scope="module")
def artifact(folder: Path) -> Path:
    return export_model(folder, folder.parent / "out" / "m.onnx").path


def test_forward_takes_as_many_and_no_more(artifact: Path) -> None:
    model = load(artifact)
    ids = np.arange(3, 4 + LONGEST)[None]
    mask = np.ones_like(ids)
    _, cache = model.forward(ids[:, :-1], mask[:, :-1])
    for text, past in ((ids, None), (ids[:, -1:], cache)):
        with pytest.raises(ProSparseError) as error:
            model.forward(text, mask, past)
        assert error.value.hint == f"shorten the text to {LONGEST} tokens, padding included (got {LONGEST + 1})"


def test_a_decoder_has_no_more_room_than_the_model(artifact: Path) -> None:
    model = load(artifact)
    decoder = model.decoder(1, LONGEST + 10)
    ids = np.arange(3, 3 + LONGEST)[None]
    decoder.prefill(ids[:, :-1], np.ones_like(ids[:, :-1]))
    last = decoder.step(ids[:, -1]).copy()
    whole, _ = model.forward(ids, np.ones_like(ids))
    np.testing.assert_allclose(last, whole[:, -1], atol=1e-3 * np.abs(whole).max())
    with pytest.raises(ProSparseError, match=f"context: expected at most {LONGEST} tokens"):
        decoder.step(ids[:, -1])
    with pytest.raises(ProSparseError, match=f"prompt: expected at most {LONGEST} tokens"):
        model.decoder(1, 100).prefill(np.ones((1, 50), np.int64), np.ones((1, 50), np.int64))


def test_commands_give_no_more(folder: Path, artifact: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text(default_text()[:6000])
    page = tmp_path / "r.html"
    small = ["--context", "8", "--tokens", "4", "--rounds", "3", "--prefill", "16", "--json"]
    commands: list[list[object]] = [
        ["validate", folder, artifact, "--max-tokens", "160", "--greedy", "4", "--step-tokens", "8", "--explain"],
        ["report", artifact, "-o", page, "--no-speed"],
        ["bench", artifact, *small],
        ["export", folder, tmp_path / "calibrated" / "m.onnx", "--profile-text", text],
    ]
    for command in commands:
        result = CliRunner().invoke(main, [*map(str, command), "-q"])
        assert result.exit_code == 0, result.output
        if command[0] == "bench":
            assert json.loads(result.stdout)
    assert page.stat().st_size > 10_000
