"""Which of the installed operator libraries go into an artifact."""

from __future__ import annotations

from pathlib import Path

import pytest

from prosparse_export.artifact.platforms import this_platform
from prosparse_export.errors import ProSparseError
from prosparse_export.runtime import installed_libraries as installed
from prosparse_export.runtime.installed_libraries import choose_libraries, library_records
from prosparse_export.runtime.operator_library import library_info, library_path

OTHERS = {"windows-arm64": "prosparse_ops.dll", "macos-x86_64": "libprosparse_ops.dylib"}


@pytest.fixture(autouse=True)
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two other platforms' libraries, as a wheel has them."""
    for platform, name in OTHERS.items():
        (tmp_path / platform).mkdir()
        (tmp_path / platform / name).write_bytes(b"prosparse_ops version 9.9\0" + platform.encode())
    monkeypatch.setattr(installed, "library_folders", lambda: [tmp_path])
    return tmp_path


def test_all_this_none_and_a_list() -> None:
    assert choose_libraries("all") == {this_platform(): library_path(), **choose_libraries(",".join(OTHERS))}
    assert choose_libraries("this") == {this_platform(): library_path()}
    assert choose_libraries("none") == {}
    assert {name: path.name for name, path in choose_libraries("macos-x86_64,windows-arm64").items()} == OTHERS


@pytest.mark.parametrize(
    ("choice", "message", "hint"),
    [
        ("android-arm64", "a platform whose library is not installed", "wheels contain every platform's"),
        ("windows-arm64,amiga", "got an unknown platform", "platforms: linux-x86_64, "),
        ("", "got an unknown platform", "or all, this, none"),
    ],
)
def test_a_platform_that_is_not_there(choice: str, message: str, hint: str) -> None:
    with pytest.raises(ProSparseError, match=message) as caught:
        choose_libraries(choice)
    assert hint in (caught.value.hint or "")


def test_versions_are_read_from_the_files(wheel: Path) -> None:
    records = library_records(choose_libraries("all"))
    assert records[this_platform()].version == library_info().version
    assert records["windows-arm64"].version == "9.9"
    assert records["windows-arm64"].file == "lib/windows-arm64/prosparse_ops.dll"
