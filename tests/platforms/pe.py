"""What a Windows library states: processor, libraries that it needs, symbols that it exports.

Source: the PE format, https://learn.microsoft.com/windows/win32/debug/pe-format.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Pe", "read_pe"]

_PROCESSORS = {0x8664: "x86_64", 0xAA64: "arm64"}
_DLL, _PE32_PLUS = 0x2000, 0x20B


@dataclass(frozen=True)
class Pe:
    """Attributes of a dynamic library.

    Attributes:
        processor: x86_64 or arm64.
        needs: libraries that are loaded with it, in lower case.
        exports: symbols that it exports.
    """

    processor: str
    needs: tuple[str, ...]
    exports: frozenset[str]


class _Image:
    """A file, read by the addresses that its sections get in memory."""

    def __init__(self, data: bytes, sections: list[tuple[int, int, int, int]]) -> None:
        self.data = data
        self._sections = sections  # of each: size in memory, address, size in the file, place in the file

    def at(self, address: int) -> int:
        for size, start, stored, place in self._sections:
            if start <= address < start + max(size, stored):
                return address - start + place
        raise ValueError(f"address {address:#x} is in no section")

    def text(self, address: int) -> str:
        start = self.at(address)
        return self.data[start : self.data.index(b"\0", start)].decode()


def read_pe(path: Path) -> Pe:
    """Read ``path``; ValueError if it is not a 64-bit dynamic library."""
    data = path.read_bytes()
    (header,) = struct.unpack_from("<I", data, 0x3C)
    machine, count, _, _, _, optional, flags = struct.unpack_from("<2H3I2H", data, header + 4)
    (magic,) = struct.unpack_from("<H", data, header + 24)
    if data[header : header + 4] != b"PE\0\0" or magic != _PE32_PLUS or not flags & _DLL:
        raise ValueError(f"{path}: expected a 64-bit Windows library, got magic {magic:#x}, flags {flags:#x}")
    table = header + 24 + optional
    image = _Image(data, [struct.unpack_from("<4I", data, table + 40 * i + 8) for i in range(count)])
    exports, _, imports = struct.unpack_from("<3I", data, header + 24 + 112)
    return Pe(_PROCESSORS[machine], _imported(image, imports), _exported(image, exports))


def _imported(image: _Image, table: int) -> tuple[str, ...]:
    names, at = [], image.at(table)
    while (name := struct.unpack_from("<I", image.data, at + 12)[0]) != 0:
        names.append(image.text(name).lower())
        at += 20
    return tuple(names)


def _exported(image: _Image, table: int) -> frozenset[str]:
    count, _, names = struct.unpack_from("<3I", image.data, image.at(table) + 24)
    places = struct.unpack_from(f"<{count}I", image.data, image.at(names))
    return frozenset(image.text(place) for place in places)
