"""Files as memory: what lies in them as it is in memory is not read before it is used."""

import mmap
import zipfile
import zlib
from pathlib import Path

import numpy as np


def mapped(path: str | Path) -> memoryview:
    """The bytes of a file."""
    with open(path, "rb") as file:
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def members(archive: zipfile.ZipFile, data: memoryview) -> dict[str, memoryview]:
    """The bytes of each member of a zip archive that is not compressed, and that lies in `data`."""
    found = {}
    for info in archive.infolist():
        if info.compress_type != zipfile.ZIP_STORED:
            raise ValueError("its archive is compressed")
        lengths = data[info.header_offset + 26 : info.header_offset + 30]  # of the name and what follows it
        start = info.header_offset + 30 + sum(np.frombuffer(lengths, "<u2").tolist())
        found[info.filename] = member = data[start : start + info.file_size]
        if zlib.crc32(member) != info.CRC:
            raise ValueError(f"{info.filename} is damaged")
    return found
