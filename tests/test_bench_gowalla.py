"""The bench of public sets: what it merges is of one size, and has proved itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import sparse

from bench.quality_gowalla import Scores, choose, held_out_ndcg, measure, merged, named, read, standard


def test_scores_of_any_size_are_measured_from_what_is_new_to_the_user() -> None:
    known = sparse.csr_matrix(np.array([[0, 0, 1, 0], [0, 0, 0, 0]], np.float32))
    scores = np.array([[1, 2, 99, 3], [1, 1, 1, 1]], np.float32)
    found = standard(scores, known)
    assert np.allclose(found, standard(scores * 1_000 + 5, known), atol=1e-4)
    assert np.allclose(found[0, [0, 1, 3]], np.array([-1, 0, 1]) / np.sqrt(2 / 3), atol=1e-5)
    assert not found[1].any()


def test_a_user_who_knows_all_that_a_source_knows_changes_nothing_for_others() -> None:
    known = sparse.csr_matrix(np.array([[0, 0, 0, 0], [1, 1, 1, 0]], np.float32))
    scores = np.array([[1, 2, 3, np.nan], [1, 2, 3, np.nan]], np.float32)
    assert np.allclose(standard(scores, known)[0, :3], np.array([-1, 0, 1]) / np.sqrt(2 / 3), atol=1e-5)
    assert np.isfinite(standard(scores, known)[1, :3]).all()


def test_a_source_says_nothing_of_items_that_it_does_not_know() -> None:
    nan = np.nan
    known = sparse.csr_matrix(np.array([[0, 0, 0, 1, 0]], np.float32))
    some = standard(np.array([[1, nan, 3, nan, nan]], np.float32), known)
    assert np.allclose(some, [[-1, nan, 1, nan, nan]], equal_nan=True)
    every = np.array([[0, 2, 4, 6, nan]], np.float32)
    found = merged([some, every], [0.5, 1.0])
    assert np.allclose(found[0, :4], [-1 / 3, 2, 3, 6])
    assert found[0, 4] < found[0, :4].min()
    assert np.allclose(merged([every, some], [1.0, 0.0])[0, :4], [0, 2, 4, 6])


def fixed(scores: NDArray[np.float32]) -> Scores:
    return lambda histories: scores[: histories.shape[0]]


def test_sources_are_merged_where_they_add_something() -> None:
    rng, users, items = np.random.default_rng(0), 300, 200
    truth = rng.standard_normal((users, items), np.float32)
    wanted = np.zeros((users, items), np.float32)
    np.put_along_axis(wanted, np.argsort(-truth, axis=1)[:, :5], 1, axis=1)
    noise = rng.standard_normal((4, users, items), np.float32)
    parts = {
        "good": fixed(truth + noise[0]),
        "other": fixed(1_000 * (truth + noise[1])),
        "worse": fixed(truth + 2 * noise[2]),
        "noise": fixed(noise[3]),
    }
    nothing, held = sparse.csr_matrix((users, items), dtype=np.float32), sparse.csr_matrix(wanted)
    everybody = np.arange(users)
    chosen = choose(parts, nothing, held, everybody)
    assert named(parts, chosen) == {"good": 1.0, "other": 1.0, "worse": 0.5}
    alone, all_alike = (1.0, 0.0, 0.0, 0.0), (1.0, 1.0, 1.0, 1.0)
    found = measure(parts, [chosen, alone, all_alike], nothing, held, everybody)
    assert found[chosen][1].mean() > max(found[alone][1].mean(), found[all_alike][1].mean()) + 0.05


def test_merges_of_the_leaders_are_those_of_all_items() -> None:
    rng, users, items = np.random.default_rng(1), 40, 700
    truth = rng.standard_normal((users, items), np.float32)
    parts = {"some": fixed(truth + rng.standard_normal((users, items), np.float32)), "other": fixed(truth.copy())}
    parts["some"](np.empty((users, 0)))[:, 500:] = np.nan
    known, held = (sparse.csr_matrix((rng.random((users, items)) < share).astype(np.float32)) for share in (0.1, 0.05))
    held = held - held.multiply(known)
    held.eliminate_zeros()
    found = held_out_ndcg(parts, known, held, np.arange(users))
    assert set(found) == {(1.0, 1.0), (1.0, 0.5), (0.5, 1.0), (1.0, 0.0), (0.0, 1.0)}
    for shares, of_all in measure(parts, found, known, held, np.arange(users)).items():
        assert np.allclose(found[shares], of_all[1])


def test_a_folder_without_the_files_is_refused_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="--data"):
        read(tmp_path / "train.txt")
