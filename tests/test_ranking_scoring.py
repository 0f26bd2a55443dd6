"""The stage that scores candidates, and the loading of rankers' directories."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shortlist.pipeline.candidates import Candidates
from shortlist.pipeline.explanation import Attributing
from shortlist.pipeline.query import Deadline, Query
from shortlist.ranking.linear import Linear, Term
from shortlist.ranking.scorer import ColumnFinder, MissingColumnsError
from shortlist.ranking.scoring import RankerError, RankerStage, load_scorer

QUERY = Query("ann", 10, 0, "r1", Deadline.after(1000))


def linear() -> Linear:
    terms = [Term(name, 0.0, 0.0, 1.0, weight, 0.0) for name, weight in (("a", 1.0), ("b", 10.0), ("tower", 100.0))]
    return Linear(terms, bias=0.0)


def test_the_stage_reads_the_feature_block_and_the_other_columns() -> None:
    stage = RankerStage("logistic", linear())
    assert isinstance(stage, Attributing)
    items = np.arange(2, dtype=np.int32)
    candidates = (
        Candidates(items)
        .describe({"tower": np.array([0.01, -0.03]), "rank": np.array([1.0, 2.0])})
        .with_matrix(("b", "unused", "a"), np.array([[0.1, 0.2], [9.0, 9.0], [0.5, 0.25]]))
    )
    odds = np.array([0.5 + 1.0 + 1.0, 0.25 + 2.0 - 3.0])
    np.testing.assert_allclose(stage.score(QUERY, candidates), 1 / (1 + np.exp(-odds)))
    parts = stage.contributions(QUERY, candidates)
    np.testing.assert_allclose(parts["tower"], [1.0, -3.0])
    assert stage.name == "logistic"


def test_a_column_of_the_block_wins_over_one_of_the_same_name_beside_it() -> None:
    scorer = Linear([Term("a", 0.0, 0.0, 1.0, 1.0, 0.0)], bias=0.0)
    candidates = Candidates(np.arange(1, dtype=np.int32)).describe({"a": np.array([5.0])})
    inside = candidates.with_matrix(("a",), np.array([[0.0]]))
    assert RankerStage("r", scorer).score(QUERY, inside).tolist() == [0.5]
    assert RankerStage("r", scorer).score(QUERY, candidates)[0] > 0.9


def test_a_column_that_nobody_wrote_is_named() -> None:
    candidates = Candidates(np.arange(1, dtype=np.int32)).with_matrix(("a", "b"), np.zeros((2, 1)))
    with pytest.raises(MissingColumnsError, match="'tower'"):
        RankerStage("r", linear()).score(QUERY, candidates)


def test_no_candidates_get_no_scores() -> None:
    candidates = Candidates(np.zeros(0, np.int32)).with_matrix(("a", "b", "tower"), np.zeros((3, 0)))
    assert RankerStage("r", linear()).score(QUERY, candidates).shape == (0,)


def test_columns_are_found_again_when_the_layout_changes() -> None:
    finder = ColumnFinder(("b", "a"))
    assert finder.positions(("a", "b")).tolist() == [1, 0]
    assert finder.positions(("a", "b")).tolist() == [1, 0]
    assert finder.positions(("b", "x", "a")).tolist() == [0, 2]
    with pytest.raises(MissingColumnsError, match="'b', 'a', which"):
        finder.positions(())
    assert finder.positions(["a", "b"]).tolist() == [1, 0]


@pytest.mark.parametrize(
    ("stored", "complaint"),
    [
        ("{", "not JSON"),
        ([], "found kind 'nothing'; expected one of linear, trees"),
        ({"kind": "pickle", "columns": []}, "found kind 'pickle'; expected one of linear, trees"),
        ({"kind": "linear"}, "no list of 'columns'"),
        ({"kind": "linear", "columns": [1]}, "no list of 'columns'"),
        ({"kind": "linear", "columns": ["a"]}, "not those of the model"),
    ],
)
def test_a_damaged_directory_is_refused(tmp_path: Path, stored: Any, complaint: str) -> None:
    linear().save(tmp_path / "linear.json")
    (tmp_path / "ranker.json").write_text(stored if isinstance(stored, str) else json.dumps(stored))
    with pytest.raises(RankerError, match=complaint):
        load_scorer(tmp_path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"ranker\.json"):
        load_scorer(tmp_path)
    (tmp_path / "ranker.json").write_text(json.dumps({"kind": "trees", "columns": []}))
    with pytest.raises(FileNotFoundError, match=r"trees\.txt"):
        load_scorer(tmp_path)
