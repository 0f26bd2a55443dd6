"""The linear scorer: its formula by hand, its file, and what it refuses."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shortlist.ranking.linear import Linear, LinearError, Term
from shortlist.ranking.scorer import MissingColumnsError

PRICE = Term("price", unit=1.0, mean=2.0, scale=0.5, weight=-1.5, missing=0.25)
RATING = Term("rating", unit=0.0, mean=3.0, scale=2.0, weight=0.8, missing=-0.5)
MODEL = Linear([PRICE, RATING], bias=0.1)
NAMES = ("rating", "other", "price")


def by_hand(price: float, rating: float) -> float:
    """The formula in the docstring of Term, one row at a time."""
    odds = 0.1
    if abs(price) < 1e100:
        odds += -1.5 * (math.copysign(math.log1p(abs(price)), price) - 2.0) / 0.5
    else:
        odds += 0.25
    odds += 0.8 * (rating - 3.0) / 2.0 if abs(rating) < 1e100 else -0.5
    return 1 / (1 + math.exp(-odds))


def test_the_score_is_the_formula() -> None:
    prices = [0.0, 9.5, -2.0, math.nan, math.inf, 1e99]
    ratings = [1.0, math.nan, 5.0, -1e101, -math.inf, 2.0]
    matrix = np.array([ratings, [7.0] * 6, prices])
    expected = [by_hand(price, rating) for price, rating in zip(prices, ratings, strict=True)]
    np.testing.assert_allclose(MODEL.score(matrix, NAMES), expected, rtol=1e-12)


def test_a_score_does_not_depend_on_the_rows_beside_it() -> None:
    matrix = np.random.default_rng(0).normal(size=(3, 300))
    together = MODEL.score(matrix, NAMES)
    alone = [float(MODEL.score(matrix[:, [row]], NAMES)[0]) for row in range(300)]
    assert together.tolist() == alone


def test_contributions_add_up_to_the_log_odds() -> None:
    matrix = np.array([[1.0, math.nan], [0.0, 0.0], [3.0, math.inf]])
    parts = MODEL.explain(matrix, NAMES)
    assert list(parts) == ["bias", "price", "rating"]
    odds = np.sum([np.asarray(column) for column in parts.values()], axis=0)
    np.testing.assert_allclose(1 / (1 + np.exp(-odds)), MODEL.score(matrix, NAMES))
    assert parts["price"][1] == 0.25
    assert parts["rating"][1] == -0.5


def test_no_rows_and_no_terms() -> None:
    assert MODEL.score(np.zeros((3, 0)), NAMES).shape == (0,)
    assert Linear([], bias=0.0).score(np.zeros((3, 2)), NAMES).tolist() == [0.5, 0.5]


def test_an_extreme_value_gives_a_certain_score_and_no_warning() -> None:
    matrix = np.array([[-1e99, 1e99], [0.0, 0.0], [0.0, 0.0]])
    assert MODEL.score(matrix, NAMES).tolist() == [0.0, 1.0]


def test_missing_columns_are_named() -> None:
    with pytest.raises(MissingColumnsError, match=r"needs 'price', which .*did you mean 'prices'\?"):
        MODEL.score(np.zeros((2, 1)), ("rating", "prices"))


def test_a_model_comes_back_from_its_file_bit_by_bit(tmp_path: Path) -> None:
    odd = Term("größe\n", unit=0.0, mean=0.1 + 0.2, scale=1 / 3, weight=5e-324, missing=-1e308)
    Linear([PRICE, odd], bias=math.pi).save(tmp_path / "linear.json")
    loaded = Linear.load(tmp_path / "linear.json")
    assert loaded.terms == (PRICE, odd)
    assert loaded.bias == math.pi


def stored(**changes: Any) -> dict[str, Any]:
    term = {"column": "a", "unit": 0.0, "mean": 0.0, "scale": 1.0, "weight": 1.0, "missing": 0.0}
    return {"bias": 0.0, "terms": [term, {**term, **changes}]}


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{", "not JSON"),
        ("[]", "expected an object with 'bias'"),
        ('{"terms": {}}', "expected an object with 'bias'"),
        ('{"terms": []}', "found bias None; expected a finite number"),
        (json.dumps(stored(mean=None)), "term 1: found mean None"),
        (json.dumps(stored(weight=math.nan)), "term 1: found weight nan"),
        (json.dumps(stored(missing=True)), "term 1: found missing True"),
        (json.dumps(stored(scale=0)), "term 1: found scale 0.0; expected more than 0"),
        (json.dumps(stored(column=3)), "term 1: 'column' must be a text"),
        (json.dumps(stored(unit=-1)), "found unit -1.0; expected 0 or more"),
        (json.dumps(stored(surprise=1)), "term 1: expected column, unit"),
    ],
)
def test_a_damaged_file_is_refused_with_its_place(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "linear.json"
    path.write_text(text)
    with pytest.raises(LinearError) as caught:
        Linear.load(path)
    assert str(caught.value).startswith(str(path))
    assert complaint in str(caught.value)
