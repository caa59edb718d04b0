"""What the loaders of platforms that no emulator here runs would check, read from the libraries with lief.

`pip install -r packaging/requirements.txt` installs lief.
"""

from __future__ import annotations

from pathlib import Path

import lief

from prosparse_export.artifact.platforms import LIBRARY_FILES

__all__ = ["check_macos", "check_windows"]

EXPORTS = {"RegisterCustomOps", "CreateEpFactories", "ReleaseEpFactory", "prosparse_ops_info"}
EXPORTS |= {"prosparse_round_weights_2", "prosparse_search_scales_2"}
LINKER_EXPORTS = ("_Zn", "_Zd", "__dso_handle", "_mh_dylib_header")  # operators new and delete are weak: no conflict
MACOS = (("macos-arm64", "ARM64", [14, 0, 0]), ("macos-x86_64", "X86_64", [13, 0, 0]))


def check_windows(libraries: Path) -> None:
    """Check what the loader of Windows on arm64 would check."""
    path = libraries / "windows-arm64" / LIBRARY_FILES["windows-arm64"]
    found = lief.PE.parse(str(path))
    assert found is not None, f"{path}: not a PE file"
    assert found.header.machine.name == "ARM64", found.header
    assert lief.PE.Header.CHARACTERISTICS.DLL in found.header.characteristics_list, found.header
    assert {entry.name for entry in found.get_export().entries} == EXPORTS
    needs = {library.name.lower() for library in found.imports}
    others = [name for name in needs if name != "kernel32.dll" and not name.startswith("api-ms-win-crt-")]
    assert others == [], "not part of Windows 10"
    print(f"windows-arm64: needs kernel32.dll and Windows' C library, exports {', '.join(sorted(EXPORTS))}; NOT RUN")


def check_macos(libraries: Path) -> None:
    """Check what macOS's loader would check."""
    for name, processor, oldest in MACOS:
        path = libraries / name / LIBRARY_FILES[name]
        file = lief.MachO.parse(str(path))
        assert file is not None, f"{path}: not a Mach-O file"
        found = file.at(0)
        assert found.header.file_type.name == "DYLIB", found.header
        assert (found.header.cpu_type.name, found.build_version.minos) == (processor, oldest), found.header
        exports = {str(symbol.name).removeprefix("_") for symbol in found.exported_symbols}
        assert exports >= EXPORTS, exports
        assert [symbol for symbol in exports - EXPORTS if not symbol.startswith(LINKER_EXPORTS)] == []
        loaded = lief.MachO.LoadCommand.TYPE.LOAD_DYLIB
        needs = [library.name for library in found.libraries if library.command == loaded]
        assert needs == ["/usr/lib/libSystem.B.dylib"], needs
        assert found.has_code_signature or processor != "ARM64", "arm64 needs a signature"
        version = ".".join(map(str, oldest[:2]))
        print(f"{name}: macOS {version}, needs {needs[0]}, exports {', '.join(sorted(EXPORTS))}; NOT RUN")
