"""What tests of several files ask for."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import settings

from shortlist.serving.turns import Turns

settings.register_profile("shared", deadline=None)  # a shared machine may pause for as long as it likes
settings.load_profile("shared")


@pytest.fixture(scope="module", params=["by the loop", "by workers"])
def wherever(request: pytest.FixtureRequest) -> Iterator[None]:
    """Once as a service that has time makes slates, on the event loop, and once all of them by its workers."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "by workers":
            patch.setattr(Turns, "_nobody_waits", lambda *_: False)
        yield
