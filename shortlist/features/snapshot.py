"""Snapshots: the table as one file, written aside, fsynced and renamed; refused when anything is wrong with it.

Layout: magic, length and CRC-32 of the header, the header (JSON: fingerprint, position, sections), then sections
aligned to 4096 bytes, each with a CRC-32. State is mapped copy-on-write, so that restoring costs one sequential read.
"""

from __future__ import annotations

import json
import mmap
import os
import struct
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from shortlist.durable import flush
from shortlist.features.entities import NEVER_NAMED, Attribute, Growing, Names
from shortlist.features.hashing import hash_strings
from shortlist.features.index import KeyIndex

if TYPE_CHECKING:
    from shortlist.features.table import FeatureTable

MAGIC = b"SHORTLIST FEATURES 1\n"
PREFIX = struct.Struct("<QI")
PAGE = 4096

Arrays = dict[str, NDArray[Any]]


class SnapshotError(Exception):
    """A snapshot that cannot be used; the message says why. The table can always be rebuilt from the log."""


class Content:
    """What a snapshot holds: a header of plain values, named arrays, and named lists of strings."""

    def __init__(
        self, header: Mapping[str, Any], arrays: Arrays, strings: Mapping[str, Sequence[str]] | None = None
    ) -> None:
        self.header, self.arrays, self.strings = header, arrays, strings or {}


def contents(table: FeatureTable) -> Content:
    """A copy of everything that a table knows; strings are encoded only when it is written."""
    arrays: Arrays = {}
    strings = {f"strings/{column}": tuple(names.strings) for column, names in table.words.items()}
    for number, state in enumerate(table.states):
        arrays[f"keys/{number}"] = state.index.keys()
        arrays[f"rows/{number}"] = state.rows[: state.index.rows + 1].copy()
        arrays[f"late/{number}"] = state.late.copy()
    for name, known in table.entities.items():
        strings |= {f"ids/{name}": tuple(known.names.strings), f"words/{name}": tuple(known.words.strings)}
        for label, attribute in known.attributes.items():
            for part in ATTRIBUTE_PARTS:
                arrays[f"attribute/{name}/{label}/{part}"] = getattr(attribute, part).values.copy()
    return Content({"fingerprint": table.features.fingerprint, "position": table.position}, arrays, strings)


ATTRIBUTE_PARTS = ("latest", "previous", "offsets", "numbers", "stops", "pool")


def adopt(table: FeatureTable, content: Content) -> None:
    """Make a table what a loaded snapshot holds."""
    arrays = content.arrays
    for number, state in enumerate(table.states):
        state.index = KeyIndex()
        state.index.insert(arrays[f"keys/{number}"])
        state.rows = arrays[f"rows/{number}"]
        state.late = arrays[f"late/{number}"].copy()
    for name, known in table.entities.items():
        known.names = _names(arrays, f"ids/{name}")
        known.words = _names(arrays, f"words/{name}")
        known.named = Growing(np.int64, NEVER_NAMED)
        for label, old in known.attributes.items():
            attribute = Attribute(old.numeric)
            for part in ATTRIBUTE_PARTS:
                getattr(attribute, part).extend(arrays[f"attribute/{name}/{label}/{part}"])
            known.attributes[label] = attribute
    for column in table.words:
        table.words[column] = _names(arrays, f"strings/{column}")
    table.position = int(content.header["position"])


def write(path: Path, content: Content) -> None:
    """Write a snapshot so that `path` is at any time either the old file or the whole new one. Raises OSError."""
    arrays = {name: np.ascontiguousarray(array) for name, array in content.arrays.items()}
    for name, strings in content.strings.items():
        arrays |= _encoded(name, strings)
    sections: list[tuple[str, str, tuple[int, ...], int, int]] = []
    offset = 0
    for name, array in arrays.items():
        crc = zlib.crc32(_bytes(array))
        sections.append((name, array.dtype.str, array.shape, offset, crc))
        offset += -(-array.nbytes // PAGE) * PAGE
    header = json.dumps({**content.header, "sections": sections}).encode()
    aside = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with aside.open("wb") as file:
            file.write(MAGIC + PREFIX.pack(len(header), zlib.crc32(header)) + header)
            start = -(-file.tell() // PAGE) * PAGE
            for (_, _, _, place, _), array in zip(sections, arrays.values(), strict=True):
                file.seek(start + place)
                file.write(_bytes(array))
            file.truncate(start + offset)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    flush(path.parent)


def load(path: Path, fingerprint: str) -> Content:
    """Read and check a snapshot. Raises SnapshotError when it is absent, of other features, damaged or cut short."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            header, start = _header(path, file.read(min(size, 1 << 26)))
            if header["fingerprint"] != fingerprint:
                raise SnapshotError(
                    f"{path} was written for other features (fingerprint {header['fingerprint'][:12]}, "
                    f"expected {fingerprint[:12]}); rebuild the table from the log"
                )
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    except OSError as error:
        raise SnapshotError(f"{path} cannot be read: {error.strerror}; rebuild the table from the log") from error
    arrays: Arrays = {}
    for name, dtype, shape, place, crc in header["sections"]:
        count = int(np.prod(shape))
        if start + place + count * np.dtype(dtype).itemsize > size:
            raise SnapshotError(f"{path} ends in the middle of {name}; rebuild the table from the log")
        array = np.frombuffer(mapped, dtype, count, start + place).reshape(shape)
        if zlib.crc32(_bytes(array)) != crc:
            raise SnapshotError(f"{path} is damaged: the checksum of {name} is wrong; rebuild the table from the log")
        arrays[name] = array
    return Content(header, arrays)


def _header(path: Path, head: bytes) -> tuple[dict[str, Any], int]:
    begin = len(MAGIC) + PREFIX.size
    if not head.startswith(MAGIC) or len(head) < begin:
        raise SnapshotError(f"{path} is no feature snapshot (or of another version); rebuild the table from the log")
    length, crc = PREFIX.unpack_from(head, len(MAGIC))
    text = head[begin : begin + length]
    if len(text) != length or zlib.crc32(text) != crc:
        raise SnapshotError(f"{path} is damaged: its header's checksum is wrong; rebuild the table from the log")
    header: dict[str, Any] = json.loads(text)
    return header, -(-(begin + length) // PAGE) * PAGE


def _encoded(prefix: str, strings: Sequence[str]) -> Arrays:
    blobs = [string.encode() for string in strings]
    return {
        f"{prefix}/text": np.frombuffer(b"".join(blobs), np.uint8),
        f"{prefix}/lengths": np.fromiter(map(len, blobs), np.int64, len(blobs)),
    }


def _names(arrays: Arrays, prefix: str) -> Names:
    names = Names()
    text, stop = arrays[f"{prefix}/text"].tobytes(), np.cumsum(arrays[f"{prefix}/lengths"])
    starts = stop - arrays[f"{prefix}/lengths"]
    names.strings = [text[a:b].decode() for a, b in zip(starts.tolist(), stop.tolist(), strict=True)]
    names.index.insert(hash_strings(pa.array(names.strings, pa.string())))
    return names


def _bytes(array: NDArray[Any]) -> memoryview:
    """A contiguous array as its bytes; no copy."""
    return array.reshape(-1).view(np.uint8).data
