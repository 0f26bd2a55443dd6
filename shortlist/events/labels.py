"""What an event is worth as a label.

With impressions: shown and acted on within a delay window is positive, shown and not acted on is negative. Without:
only what was acted on is known, and it is called so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shortlist.events.schema import EventSchema


@dataclass(frozen=True)
class Labels:
    """Impressions joined to later actions.

    `gains` says what one action of each kind is worth; `within` is how long after the impression it still counts.
    """

    impression: EventSchema
    gains: Mapping[EventSchema, float]
    within: str = "24h"


@dataclass(frozen=True)
class ObservedPositives:
    """The honest substitute where no impressions were logged (ratings): what was acted on is positive.

    There are no observed negatives; training draws them and says so. `where` keeps only actions whose field compares
    so, as `("stars", ">=", 4.0)`; an action of a kind without that field is kept.
    """

    gains: Mapping[EventSchema, float]
    where: tuple[str, str, Any] | None = None
