"""The two small files that only the process that writes a log has: the lock and the mark."""

from __future__ import annotations

import fcntl
import logging
import os
import struct
import zlib
from pathlib import Path

from shortlist.events.log import LogCorruptError, LogLockedError

logger = logging.getLogger(__name__)


class WriteLock:
    """Held while a log is open for writing; the system lets go of it when the process ends, however it ends."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(self._file, 32, 0).decode("ascii", "replace").strip() or "unknown"
            os.close(self._file)
            raise LogLockedError(
                f"{path.with_suffix('')} is being written by process {holder}; stop it, or open the log to read only"
            ) from error
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, f"{os.getpid()}\n".encode(), 0)

    def close(self) -> None:
        """Let others write."""
        os.close(self._file)


class Mark:
    """The position up to which events were acknowledged, written after each commit without waiting for the disk.

    SQLite silently drops a damaged tail of its write-ahead log, because it cannot know whether it was ever
    acknowledged. The mark knows: a log that ends before it has lost something.
    """

    RECORD = struct.Struct("<QI")

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)

    def check(self, position: int, log: Path) -> None:
        """Raise LogCorruptError where a log that ends at `position` lacks events that were acknowledged."""
        record = os.pread(self._file, self.RECORD.size, 0)
        if len(record) < self.RECORD.size:
            return
        marked, crc = self.RECORD.unpack(record)
        if zlib.crc32(record[:8]) == crc and marked > position:
            raise LogCorruptError(
                f"{log} ends at offset {position}, but events up to offset {marked} were acknowledged: it or {log}-wal "
                f"was cut or replaced; restore both, or delete {self._path} to go on without these events"
            )

    def write(self, position: int) -> None:
        """Record that everything below `position` is acknowledged."""
        number = struct.pack("<Q", position)
        try:
            os.pwrite(self._file, number + struct.pack("<I", zlib.crc32(number)), 0)
        except OSError as error:  # the events are durable; only the check of the next start is weaker
            logger.warning("%s could not be written: %s", self._path, error)

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)
