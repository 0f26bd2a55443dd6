"""What does a search cost? A model fitted to measurements, not a clock: the same index and question, the same way.

Nanoseconds of one thread of an AVX-512 machine; only their proportions matter. What makes codes dear to look far with
is that all that is found must be looked up.
"""

from __future__ import annotations

SCAN, REFINE = 0.01, 1.4
"""Per vector and direction scanned; per wanted candidate and dimension refined: half as many more come along."""
COMPARE = 0.5
"""Per vector and dimension compared exactly, in the order in which the vectors lie in memory."""
SIFT = 80.0
"""Per candidate that codes find beyond what is refined: it is kept and looked up."""


def scan(vectors: int, directions: int) -> float:
    """Looking at the codes of all vectors."""
    return SCAN * vectors * directions


def refine(candidates: int, dimensions: int) -> float:
    """The exact products of what the codes found."""
    return REFINE * candidates * dimensions


def compare(vectors: int, dimensions: int) -> float:
    """The exact products of some vectors, chosen without codes."""
    return COMPARE * vectors * dimensions


def sift(found: int) -> float:
    """Finding so many candidates by their codes, and dropping what may not be found."""
    return SIFT * found
