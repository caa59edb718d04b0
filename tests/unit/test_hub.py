"""A model by its name on the Hub: a local folder, then the cache, then a one-line error."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub.constants
import pytest
from support.training_models import cache_of_the_hub

from prosparse_models import CheckpointError
from prosparse_models.loading.hub import find_model_folder


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def test_a_folder_comes_first(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lab" / "model").mkdir(parents=True)
    cache_of_the_hub(tmp_path / "lab" / "model", cache, "lab/model")
    monkeypatch.chdir(tmp_path)
    told: list[str] = []
    assert find_model_folder(Path("lab/model"), progress=lambda stage, *_: told.append(stage)) == Path("lab/model")
    assert told == []


def test_the_cache_is_used_without_a_network(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "config.json").write_text("{}")
    snapshot = cache_of_the_hub(tmp_path / "source", cache, "lab/model")
    told: list[str] = []
    assert find_model_folder(Path("lab/model"), progress=lambda stage, *_: told.append(stage)) == snapshot
    assert told == ["download lab/model from the Hugging Face Hub"]


@pytest.mark.parametrize("offline", [True, False], ids=["offline", "nobody answers"])
def test_failure_is_one_line(offline: bool, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", offline)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(CheckpointError) as caught:
        find_model_folder(Path("lab/other"))
    assert str(caught.value).startswith(
        "model: lab/other: not a local folder, and the Hugging Face Hub download failed"
    )
    assert "\n" not in str(caught.value)
    assert caught.value.hint
    assert "hf download lab/other --local-dir" in caught.value.hint


@pytest.mark.parametrize("name", ["no/such/folder", "nothing", "../up/there", "lab/"])
def test_invalid_name_is_a_missing_folder(name: str, cache: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no such folder, and not a name on the Hugging Face Hub \(ORG/NAME\)"):
        find_model_folder(Path(name))


def test_a_name_in_an_existing_folder_is_a_missing_folder(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path)
    told: list[str] = []
    with pytest.raises(CheckpointError, match="out/none: no such folder in out") as caught:
        find_model_folder(Path("out/none"), progress=lambda stage, *_: told.append(stage))
    assert "check the path" in str(caught.value.hint)
    assert told == []
