"""Maps files into memory. Bytes are read from disk when they are used."""

import mmap
import zipfile
import zlib
from pathlib import Path

import numpy as np


def map_file(path: str | Path) -> memoryview:
    """Maps a file into memory, read-only."""
    with open(path, "rb") as file:
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def map_members(archive: zipfile.ZipFile, data: memoryview) -> dict[str, memoryview]:
    """Finds the bytes of each member of an uncompressed zip archive; `data` is the mapped archive."""
    found = {}
    for info in archive.infolist():
        if info.compress_type != zipfile.ZIP_STORED:
            raise ValueError("the archive is compressed; expected an uncompressed one")
        lengths = data[info.header_offset + 26 : info.header_offset + 30]  # of the name and of the extra field
        start = info.header_offset + 30 + sum(np.frombuffer(lengths, "<u2").tolist())
        found[info.filename] = member = data[start : start + info.file_size]
        if zlib.crc32(member) != info.CRC:
            raise ValueError(f"{info.filename} is damaged")
    return found
