"""Which items have events changed? A mark in the versions of an attribute, and what lies behind it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from shortlist.features.entities import Attribute
from shortlist.retrieval.vectors.index import Rows


@dataclass(frozen=True)
class Mark:
    """Up to where an attribute was looked at: `versions` of a `source`, at log `position` or later."""

    source: object = None
    versions: int = 0
    position: int = 0

    @classmethod
    def of(cls, attribute: Attribute, position: int) -> Mark:
        """Here. `position` is that of the table, read before. What is being linked at this moment lies behind."""
        return cls(attribute.latest, int(attribute.latest.values.max(initial=0)), position)

    def is_here(self, attribute: Attribute) -> bool:
        """Whether nothing lies behind it."""
        return self.source is attribute.latest and self.versions == attribute.previous.size

    def changed(self, attribute: Attribute) -> Rows:
        """The items that have another version since, by index; some may be named that have not."""
        latest = attribute.latest.values[1:]
        if self.source is attribute.latest:
            return np.flatnonzero(latest > self.versions).astype(np.int32)
        known = np.flatnonzero(latest)  # superseded versions were dropped, and the others numbered anew
        changed: Rows = known[attribute.offsets.values[latest[known] - 1] >= self.position].astype(np.int32)
        return changed
