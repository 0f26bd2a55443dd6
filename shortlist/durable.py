"""Files that are there whole or not at all, whatever happens while they are written, and who alone writes them."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path


def write_durably(path: Path, data: bytes | memoryview) -> None:
    """Write a file aside, flush it, rename it into place and flush the folder. Raises OSError, leaving nothing.

    The name aside begins with an underscore: readers of data sets pass over it.
    """
    aside = path.with_name(f"_{path.name}.tmp")
    try:
        with aside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except OSError:
        aside.unlink(missing_ok=True)
        raise
    flush(path.parent)


def flush(path: Path) -> None:
    """Have the disk keep what a file holds, or which files a folder holds."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def take_lock(path: Path) -> int | None:
    """The handle of a lock, held until it is closed or the process ends; None where another one holds it."""
    handle = os.open(path, os.O_CREAT | os.O_RDWR, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None
    return handle
