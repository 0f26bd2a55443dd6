"""The bench of public sets: what it merges is of one size, and has proved itself."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import sparse

from bench import quality_gowalla
from bench._pairs import read, read_folder
from bench.quality_gowalla import Scores, choose, held_out_ndcg, measure, merged, named, run, standard

Lists = Sequence[Sequence[int]]


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
    chosen = choose(parts, held_out_ndcg(parts, nothing, held, everybody))
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


def folder(path: Path, train: str | Lists, test: str | Lists, encoding: str = "utf-8") -> Path:
    for name, lists in (("train", train), ("test", test)):
        text = lists if isinstance(lists, str) else "".join(" ".join(map(str, ids)) + "\n" for ids in lists)
        (path / f"{name}.txt").write_text(text, encoding)
    return path


def tastes(user: Callable[[int], int] = int, item: Callable[[int], int] = int) -> tuple[Lists, Lists]:
    """Forty users of one of two tastes, each with ten of its fifteen items in train and two in test."""
    rng = np.random.default_rng(0)
    own = [rng.permutation(15)[:12] * 2 + each % 2 for each in range(40)]
    train, test = (
        [[user(each), *(item(one) for one in items[part].tolist())] for each, items in enumerate(own)]
        for part in (slice(10), slice(10, 12))
    )
    return train, test


def asked(path: Path) -> argparse.Namespace:
    return argparse.Namespace(data=path, quick=True)


def test_an_item_counts_once_in_train_and_test(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train, test, shape = read_folder(folder(tmp_path, "0 5 5 3\n1 3\n0 3 4\n", "0 9 9 5\n1 9\n"))
    assert list(zip(train.user, train.item, strict=True)) == [(0, 2), (0, 0), (1, 0), (0, 1)]
    assert list(zip(test.user, test.item, strict=True)) == [(0, 3), (1, 3)]
    assert shape == (2, 4)
    said = capsys.readouterr().out
    assert "train.txt: 2 repeated pairs" in said
    assert "test.txt: 1 repeated pairs" in said
    assert "1 pairs are in train.txt too" in said


@pytest.mark.parametrize("word", ["-3", "1.5", "abc", "1,2", "9" * 25])
def test_what_is_no_id_is_refused_by_its_line(tmp_path: Path, word: str) -> None:
    with pytest.raises(SystemExit, match=rf"train\.txt, line 3: '{word}' is not an id; lines are"):
        read_folder(folder(tmp_path, f"0 1\n\n1 {word}\n", "0 2\n"))


@pytest.mark.parametrize(
    ("train", "test", "said"),
    [
        ("", "0 1\n", r"train\.txt has no pair"),
        ("0 1\n", "\n0\n", r"test\.txt has no pair"),
        ("0 1\n", "0 1\n", r"test\.txt has no pair that train\.txt has not"),
    ],
)
def test_folders_that_say_nothing_are_refused(tmp_path: Path, train: str, test: str, said: str) -> None:
    with pytest.raises(SystemExit, match=said):
        read_folder(folder(tmp_path, train, test))


def test_users_of_whom_nothing_is_known_are_dropped_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train, test, shape = read_folder(folder(tmp_path, "0 1\n8\n", "0 2\n\n8 1\n9 1\n"))
    assert (train.user.tolist(), test.user.tolist(), test.item.tolist(), shape) == ([0], [0], [1], (1, 2))
    assert "test.txt: 2 users have no items in train.txt" in capsys.readouterr().out


def test_too_few_users_to_choose_by_are_refused(tmp_path: Path) -> None:
    train, test = tastes()
    with pytest.raises(SystemExit, match=r"train\.txt: of 3 users .* at least"):
        run(asked(folder(tmp_path, train[:3], test[:3])))


def test_a_byte_order_mark_is_harmless_and_another_encoding_is_not(tmp_path: Path) -> None:
    assert read_folder(folder(tmp_path, "0 1\n", "0 2\n", "utf-8-sig"))[2] == (1, 2)
    with pytest.raises(SystemExit, match=r"line 1: .* is not an id"):
        read(folder(tmp_path, "0 1\n", "0 2\n", "utf-16") / "train.txt")


def test_ids_far_apart_are_those_of_a_dense_folder(tmp_path: Path) -> None:
    dense = read_folder(folder(tmp_path, *tastes()))
    sparse_ids = read_folder(
        folder(tmp_path, *tastes(lambda user: 10**17 + 10**9 * user, lambda item: 7 + 10**15 * item))
    )
    assert sparse_ids[2] == dense[2] == (40, 30)
    for one, other in zip(sparse_ids[:2], dense[:2], strict=True):
        assert np.array_equal(one.user, other.user)
        assert np.array_equal(one.item, other.item)


def test_the_headline_is_what_train_prefers_whatever_test_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = asked(folder(tmp_path, *tastes()))
    figures = run(path)
    assert set(figures) == {"recall_20", "ndcg_20", "source", "merged", "users", "sources"}
    best = figures["source"]
    other = next(spec.name for spec in quality_gowalla.SPECS[:2] if spec.name != best)
    assert f"the headline is {best}" in capsys.readouterr().out
    honest = quality_gowalla.measure

    def flattering(parts: dict[str, Scores], *others: object) -> object:
        found = honest(parts, *others)  # type: ignore[arg-type]
        return found | {quality_gowalla.alone(parts)[other]: np.ones((2, 40))}

    monkeypatch.setattr(quality_gowalla, "measure", flattering)
    again = run(path)
    assert again["sources"][other]["ndcg_20"] == 1.0 > again["ndcg_20"]
    assert again["source"] == best
