"""Which event ids are in the log: what makes an append idempotent."""

from __future__ import annotations

from collections.abc import Sequence


class SeenIds:
    """The ids of a log's events."""

    def __init__(self) -> None:
        self._recent: set[str] = set()

    def fresh(self, ids: Sequence[str | None], pending: set[str]) -> list[int] | None:
        """The places of the ids that are neither known nor `pending`, which they join; None where that is all of them.

        An event without an id ("" or None) is always fresh.
        """
        known = self.known([text for text in ids if text])
        kept: list[int] = []
        for place, text in enumerate(ids):
            if text:
                if text in known or text in pending:
                    continue
                pending.add(text)
            kept.append(place)
        return None if len(kept) == len(ids) else kept

    def known(self, ids: Sequence[str]) -> set[str]:
        """Those of `ids` that are in the log."""
        return self._recent.intersection(ids)

    def add(self, ids: set[str]) -> None:
        """Remember ids that are durable now."""
        self._recent |= ids
