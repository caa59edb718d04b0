"""What a macOS library states: processor, oldest system, libraries that it needs, symbols that it exports.

Source: the headers "loader" and "nlist" in the folder mach-o of the macOS SDK.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["MachO", "read_mach_o"]

_MAGIC = 0xFEEDFACF  # 64 bits, little-endian
_PROCESSORS = {0x01000007: "x86_64", 0x0100000C: "arm64"}
_DYLIB = 6
_SYMTAB, _LOAD_DYLIB, _ID_DYLIB, _CODE_SIGNATURE, _BUILD_VERSION = 0x2, 0xC, 0xD, 0x1D, 0x32
_STAB, _PRIVATE, _EXTERNAL, _TYPE, _UNDEFINED = 0xE0, 0x10, 0x01, 0x0E, 0x0


@dataclass(frozen=True)
class MachO:
    """Attributes of a dynamic library.

    Attributes:
        processor: x86_64 or arm64.
        oldest: the oldest macOS that loads it.
        needs: libraries that are loaded with it.
        exports: symbols that it exports, without the leading underscore.
        signed: it has a code signature, which arm64 requires.
    """

    processor: str
    oldest: str
    needs: tuple[str, ...]
    exports: frozenset[str]
    signed: bool


def read_mach_o(path: Path) -> MachO:
    """Read ``path``; ValueError if it is not a 64-bit dynamic library."""
    data = path.read_bytes()
    magic, processor, _, kind, count = struct.unpack_from("<5I", data)
    if magic != _MAGIC or kind != _DYLIB:
        raise ValueError(f"{path}: expected a 64-bit Mach-O dynamic library, got magic {magic:#x}, type {kind}")
    oldest, needs, exports, signed = "", [], frozenset[str](), False
    for command, at in _commands(data, count):
        if command in (_LOAD_DYLIB, _ID_DYLIB):
            (name,) = struct.unpack_from("<I", data, at + 8)
            if command == _LOAD_DYLIB:
                needs.append(_text(data, at + name))
        elif command == _BUILD_VERSION:
            (version,) = struct.unpack_from("<I", data, at + 12)
            oldest = f"{version >> 16}.{version >> 8 & 255}"
        elif command == _SYMTAB:
            exports = frozenset(_exported(data, *struct.unpack_from("<3I", data, at + 8)))
        signed |= command == _CODE_SIGNATURE
    return MachO(_PROCESSORS[processor], oldest, tuple(needs), exports, signed)


def _commands(data: bytes, count: int) -> Iterator[tuple[int, int]]:
    at = 32
    for _ in range(count):
        command, size = struct.unpack_from("<2I", data, at)
        yield command & 0x7FFFFFFF, at
        at += size


def _exported(data: bytes, symbols: int, count: int, strings: int) -> Iterator[str]:
    for i in range(count):
        name, kind = struct.unpack_from("<IB", data, symbols + 16 * i)
        if kind & _STAB or kind & _PRIVATE or not kind & _EXTERNAL or kind & _TYPE == _UNDEFINED:
            continue
        yield _text(data, strings + name).removeprefix("_")


def _text(data: bytes, at: int) -> str:
    return data[at : data.index(b"\0", at)].decode()
