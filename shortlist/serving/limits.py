"""What the service accepts, how long it waits and how often it looks around."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Bounds and intervals of the HTTP service. Times in seconds, sizes in bytes.

    Of `connections` at the same time there are fewer where the system lets the process open fewer files.
    What a request holds is worked through while others wait: `where` names so many values of each attribute, and the
    context is logged with every item shown. `vector_sample` is the share of requests whose slates' feature vectors are
    logged for the skew audit, 0 to 1.
    """

    body_bytes: int = 8 * 1024 * 1024
    head_bytes: int = 32 * 1024
    head_seconds: float = 10.0
    body_seconds: float = 30.0
    keep_alive_seconds: float = 30.0
    connections: int = 8_192
    shutdown_seconds: float = 20.0
    k: int = 1_000
    items: int = 10_000
    exclude: int = 10_000
    where_values: int = 1_000
    context_bytes: int = 16 * 1024
    vector_sample: float = 0.01
    snapshot_seconds: float = 300.0
    watch_seconds: float = 1.0
