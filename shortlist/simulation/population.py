"""Who lives in the world and what there is to see: drawn once, from a seed, as columns.

What is visible (age, country, category, creator, tags) is informative and not sufficient: tastes lean on a user's age
and country, an item's vector leans on its tags and its creator, and the rest of both is hidden.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]

DIMENSIONS = 8
TAGS_PER_CATEGORY = 10
AGES = np.array([13, 20, 28, 36, 48, 62, 81])
"""The age groups' bounds: tastes differ between groups."""

COUNTRIES = ("AR", "BR", "DE", "EG", "FR", "GB", "ID", "IN", "JP", "KE", "MX", "US")
DEVICES = ("mobile", "desktop", "tv", "tablet")

TOPICS = (
    *("cooking", "chess", "astronomy", "football", "gardening", "jazz", "history", "woodworking", "travel", "cycling"),
    *("painting", "robotics", "sailing", "dance", "geology", "photography", "climbing", "comedy", "economics"),
    *("baking", "birds", "pottery", "running", "architecture"),
)
ANGLES = ("basics", "live", "stories", "tools", "masters", "mistakes", "outdoors", "at-home", "interviews", "records")
ADJECTIVES = ("Quiet", "Bold", "Hidden", "Modern", "Endless", "Golden", "Simple", "Wild", "Late", "Perfect", "Strange")
NOUNS = ("Hour", "Guide", "Journey", "Lesson", "Season", "Secret", "Workshop", "Challenge", "Diary", "Tour")


def category_names(count: int) -> list[str]:
    """`count` distinct category names."""
    return [TOPICS[i] if i < len(TOPICS) else f"{TOPICS[i % len(TOPICS)]}-{i // len(TOPICS) + 1}" for i in range(count)]


def tag_names(categories: list[str]) -> list[str]:
    """Ten tags for each category, in its order."""
    return [f"{category}-{angle}" for category in categories for angle in ANGLES]


def unit(vectors: Floats) -> NDArray[np.float32]:
    """The vectors (rows) scaled to length 1."""
    return np.asarray(vectors / np.linalg.norm(vectors, axis=-1, keepdims=True), np.float32)


@dataclass(frozen=True)
class Topics:
    """The categories: their vectors, how common they are, and whom they attract (logits)."""

    centers: NDArray[np.float32]
    tags: NDArray[np.float32]
    share: NDArray[np.float64]
    by_age: NDArray[np.float64]
    by_country: NDArray[np.float64]

    @classmethod
    def draw(cls, count: int, rng: np.random.Generator) -> Topics:
        """`count` categories of ten tags each."""
        centers = unit(rng.standard_normal((count, DIMENSIONS)))
        spread = 0.6 * unit(rng.standard_normal((count * TAGS_PER_CATEGORY, DIMENSIONS)))
        tags = unit(np.repeat(centers, TAGS_PER_CATEGORY, axis=0) + spread)
        share = 1.0 / np.arange(1, count + 1) ** 0.6
        by_age = rng.normal(0, 0.8, (len(AGES) - 1, count))
        by_country = rng.normal(0, 0.5, (len(COUNTRIES), count))
        return cls(centers, tags, share / share.sum(), by_age, by_country)


@dataclass(frozen=True)
class Users:
    """Users in the order in which they join; one value (or row) per user."""

    taste: NDArray[np.float32]
    activity: NDArray[np.float64]
    patience: NDArray[np.float64]
    joined: NDArray[np.int64]
    age: NDArray[np.int64]
    country: NDArray[np.int8]
    device: NDArray[np.int8]

    @classmethod
    def draw(cls, count: int, topics: Topics, start: int, end: int, rng: np.random.Generator) -> Users:
        """`count` users; three in five are there at `start` (ms), the others join evenly until `end`.

        Activity is Pareto with tail 1.5 (visits per user are heavy-tailed), patience the mean number of slates of
        a visit, 1 + lognormal. A taste is a mix of three favourite categories, drawn by age and country, and noise.
        """
        group = rng.choice(len(AGES) - 1, count, p=[0.2, 0.25, 0.2, 0.15, 0.12, 0.08])
        age = rng.integers(AGES[group], AGES[group + 1])
        country = rng.choice(len(COUNTRIES), count)
        device = np.where(rng.random(count) < 0.6, 0, rng.integers(1, len(DEVICES), count))
        logits = np.log(topics.share) + topics.by_age[group] + topics.by_country[country]
        favourites = min(3, len(topics.share))
        drawn = np.argsort(-(logits + rng.gumbel(size=logits.shape)), axis=1)[:, :favourites]
        weights = rng.dirichlet([3.0, 1.5, 0.7][:favourites], count)
        mixed = (topics.centers[drawn] * weights[:, :, None]).sum(axis=1)
        taste = unit(unit(mixed) + 0.45 * unit(rng.standard_normal((count, DIMENSIONS))))
        joined = np.where(rng.random(count) < 0.6, start, rng.integers(start, end, count))
        return cls(
            taste,
            np.minimum(1.0 + rng.pareto(1.5, count), 200.0),
            1.0 + rng.lognormal(-0.3, 0.8, count),
            np.sort(joined),
            age,
            country.astype(np.int8),
            device.astype(np.int8),
        )


@dataclass(frozen=True)
class Items:
    """Items in the order of their birth; one value (or row) per item.

    `tags` are numbers of tags, three per item (repeats mean fewer); `reach` is how widely the world talks of an item:
    what the historic policy's popularity goes by.
    """

    vector: NDArray[np.float32]
    category: NDArray[np.int16]
    creator: NDArray[np.int32]
    tags: NDArray[np.int32]
    born: NDArray[np.int64]
    quality: NDArray[np.float32]
    bait: NDArray[np.float32]
    reach: NDArray[np.float64]

    @classmethod
    def draw(cls, count: int, topics: Topics, start: int, end: int, rng: np.random.Generator) -> Items:
        """`count` items; three in five are born in the 180 days before `start` (ms), the others evenly until `end`.

        The first items fill every category, so that none is ever empty. A creator works in one category; the sizes of
        their catalogues and the items' reach are heavy-tailed.
        """
        categories = len(topics.share)
        creators = max(categories, count // 40)
        home = np.concatenate(
            [np.arange(categories), rng.choice(categories, creators - categories, p=topics.share)]
        ).astype(np.int16)
        skill = rng.normal(0, 0.4, creators)
        manner = unit(rng.standard_normal((creators, DIMENSIONS)))
        output = np.cumsum(1.0 + rng.pareto(1.2, creators))
        creator = np.searchsorted(output, rng.random(count) * output[-1], side="right").astype(np.int32)
        creator[: min(count, categories)] = np.arange(min(count, categories))
        category = home[creator]
        tags = category[:, None].astype(np.int32) * TAGS_PER_CATEGORY + rng.integers(0, TAGS_PER_CATEGORY, (count, 3))
        stray = rng.random(count) < 0.15
        tags[stray, 2] = rng.integers(0, categories * TAGS_PER_CATEGORY, int(stray.sum()))
        vector = topics.tags[tags].mean(axis=1)
        vector = vector + 0.25 * manner[creator] + 0.2 * unit(rng.standard_normal((count, DIMENSIONS)))
        quality = (skill[creator] + rng.normal(0, 0.35, count)).astype(np.float32)
        old = max(min(count, categories), round(0.6 * count))
        born = np.concatenate(
            [rng.integers(start - 180 * 86_400_000, start, old), rng.integers(start, end, count - old)]
        )
        reach = (1.0 + rng.pareto(1.3, count)) * np.exp(0.5 * quality)
        bait = rng.normal(0, 0.3, count).astype(np.float32)
        return cls(unit(vector), category, creator, tags, np.sort(born), quality, bait, reach)
