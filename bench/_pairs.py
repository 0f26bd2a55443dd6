"""Folders of users and their items, as LightGCN has them: what is wrong is said, and nothing counts twice."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

ID = re.compile(r"[0-9]{1,18}")
FORMAT = "lines are `user item item ...`, whole numbers from 0, of at most 18 digits, with spaces between"


@dataclass(frozen=True)
class Pairs:
    """Users and items by number."""

    user: NDArray[np.int64]
    item: NDArray[np.int64]

    def take(self, part: NDArray[Any]) -> Pairs:
        """Some of them."""
        return Pairs(self.user[part], self.item[part])

    def matrix(self, shape: tuple[int, int]) -> Any:
        """Ones, CSR, shape (users, items)."""
        return sparse.csr_matrix((np.ones(len(self.user), np.float32), (self.user, self.item)), shape)


def read_folder(folder: Path) -> tuple[Pairs, Pairs, tuple[int, int]]:
    """Train, test without what is in train, and the shape of both. Raises SystemExit with what is wrong where.

    Users and items are numbered in the order of their ids: blocks are as wide as there are items, whatever their ids.
    """
    train, test = (read(folder / f"{name}.txt") for name in ("train", "test"))
    known = np.isin(test.user, train.user)
    if not known.all():
        strangers = len(np.unique(test.user[~known]))
        print(f"  {folder / 'test.txt'}: {strangers} users have no items in train.txt, and are dropped", flush=True)
        test = test.take(known)
    users, items = np.unique(train.user), np.unique(np.concatenate([train.item, test.item]))
    train, test = (Pairs(np.searchsorted(users, of.user), np.searchsorted(items, of.item)) for of in (train, test))
    fresh = ~np.isin(test.user * len(items) + test.item, train.user * len(items) + train.item)
    if not fresh.all():
        print(f"  {folder / 'test.txt'}: {np.sum(~fresh)} pairs are in train.txt too, and dropped", flush=True)
    if not fresh.any():
        raise SystemExit(f"{folder / 'test.txt'} has no pair that train.txt has not; give it what came after")
    return train, test.take(fresh), (len(users), len(items))


def read(path: Path) -> Pairs:
    """The pairs of a file by their ids, each once, where it was first. Raises SystemExit with what is wrong where."""
    rows = [np.array(ids, np.int64) for _, ids in lists(path)]
    if not any(len(row) > 1 for row in rows):
        raise SystemExit(f"{path} has no pair of a user and an item; {FORMAT}")
    pairs = Pairs(
        np.repeat([row[0] for row in rows], [len(row) - 1 for row in rows]), np.concatenate([row[1:] for row in rows])
    )
    _, user = np.unique(pairs.user, return_inverse=True)
    items, item = np.unique(pairs.item, return_inverse=True)
    _, first = np.unique(user * len(items) + item, return_index=True)
    if len(first) < len(pairs.user):
        print(f"  {path}: {len(pairs.user) - len(first)} repeated pairs dropped", flush=True)
    return pairs.take(np.sort(first))


def lists(path: Path) -> Iterator[tuple[int, list[int]]]:
    """The lines that are not empty, each with its number, from 1. Raises SystemExit with what is wrong where."""
    try:
        with path.open(encoding="utf-8-sig", errors="replace") as file:  # what is no text is refused as no id, by line
            for number, line in enumerate(file, 1):
                words = line.split()
                wrong = next((word for word in words if not ID.fullmatch(word)), None)
                if wrong is not None:
                    raise SystemExit(f"{path}, line {number}: {wrong[:40]!r} is not an id; {FORMAT}")
                if words:
                    yield number, [int(word) for word in words]
    except OSError as error:
        raise SystemExit(
            f"{path} cannot be read ({error.strerror}); give the folder with --data, or set SHORTLIST_DATA"
        ) from error
