"""The operator libraries that are installed, and the choice of those that go into an artifact."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from prosparse_export.artifact.libraries import library_record, library_version
from prosparse_export.artifact.manifest import LibraryRecord
from prosparse_export.artifact.platforms import PLATFORMS, library_file, this_platform
from prosparse_export.errors import ProSparseError
from prosparse_export.runtime.operator_library import library_folders, library_info, library_path

__all__ = ["choose_libraries", "installed_libraries", "library_records"]


def installed_libraries() -> dict[str, Path]:
    """Return the installed libraries by platform; this platform's is `library_path`.

    Wheels contain every platform's; a build from source, its own.

    Raises:
        ProSparseError: this platform's is not installed.
    """
    found = {this_platform(): library_path()}
    for folder in library_folders():
        for name in PLATFORMS:
            path = folder / name / library_file(name)
            if name not in found and path.is_file():
                found[name] = path
    return found


def choose_libraries(choice: str) -> dict[str, Path]:
    """Return the libraries that ``choice`` selects: ``all`` that are installed, ``this``, ``none``, or a list.

    Args:
        choice: one of these words, or platforms separated by commas.

    Raises:
        ProSparseError: a platform is unknown or not installed.
    """
    if choice == "none":
        return {}
    installed = installed_libraries()
    if choice == "all":
        return installed
    wanted = [this_platform()] if choice == "this" else choice.split(",")
    for name in wanted:
        if name not in installed:
            known = name in PLATFORMS
            raise ProSparseError(
                f"--libraries: {name}: expected one of {', '.join(sorted(installed))}, "
                f"got {'a platform whose library is not installed' if known else 'an unknown platform'}",
                hint="wheels contain every platform's library, source builds only their own: docs/guides/deploy.md"
                if known
                else f"platforms: {', '.join(PLATFORMS)}; or all, this, none",
            )
    return {name: installed[name] for name in wanted}


def library_records(libraries: Mapping[str, Path]) -> dict[str, LibraryRecord]:
    """Return the manifest's entries for ``libraries``, given by platform.

    Raises:
        ProSparseError: a file is not an operator library.
    """
    return {
        name: library_record(name, path, library_info().version if name == this_platform() else library_version(path))
        for name, path in libraries.items()
    }
