"""Trees against LightGBM itself, to the last bit, on models that are drawn and models that are trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from shortlist.ranking.model_text import ModelTextError, parse_model
from shortlist.ranking.scorer import MissingColumnsError
from shortlist.ranking.trees import Trees
from tests.processors import printed_on_a_plain_processor

ROWS = (0, 1, 7, 128, 129, 256, 257, 500, 513, 1300)
ZERO = float(np.float32(1e-35))
ODD = [np.nan, 0.0, -0.0, np.inf, -np.inf, 1e300, -1e300, ZERO, -ZERO, 1.1e-35, 1e-36, 5e-324, 2.0**31, 2.0**40]


class Drawn:
    """A model text drawn node by node: shapes, thresholds and missing values that no training would give."""

    def __init__(self, seed: int, features: int, trees: int, leaves: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.features = features
        self.chain = self.rng.random() < 0.3
        self.categorical = self.rng.random(features) < 0.3
        self.grid = self.rng.choice([3, 40, 2000])
        self.cuts: list[float] = []
        sections = [self.tree(number, int(self.rng.integers(1, leaves + 1))) for number in range(trees)]
        names = " ".join(f"f{number}" for number in range(features))
        self.text = (
            f"tree\nversion=v4\nnum_class=1\nnum_tree_per_iteration=1\nlabel_index=0\nmax_feature_idx={features - 1}\n"
            f"objective=lambdarank\nfeature_names={names}\nfeature_infos={' '.join(['none'] * features)}\n"
            f"tree_sizes={' '.join(str(len(section)) for section in sections)}\n\n{''.join(sections)}end of trees\n"
        )

    def tree(self, number: int, leaves: int) -> str:
        left, right = self.shape(leaves)
        inner = leaves - 1
        feature = self.rng.integers(0, self.features, inner)
        categorical = self.categorical[feature]
        decision = np.where(categorical, 1, 0) + self.rng.choice([0, 2], inner) + self.rng.choice([0, 4, 8], inner)
        threshold = np.where(self.rng.random(inner) < 0.1, 0.0, self.rng.integers(-self.grid, self.grid, inner) / 7)
        self.cuts += threshold[~categorical].tolist()
        sets = [self.rng.integers(0, 2**32, self.rng.integers(1, 4)) for _ in range(int(categorical.sum()))]
        threshold[categorical] = np.arange(len(sets))
        lines = {
            "num_leaves": leaves,
            "num_cat": len(sets),
            "split_feature": words(feature),
            "threshold": " ".join(repr(float(cut)) for cut in threshold),
            "decision_type": words(decision),
            "left_child": words(left),
            "right_child": words(right),
            "leaf_value": " ".join(repr(float(value)) for value in self.rng.normal(size=leaves)),
            "leaf_count": words(self.rng.integers(0, 90, leaves)),
        }
        if sets:
            lines["cat_boundaries"] = words(np.cumsum([0, *map(len, sets)]))
            lines["cat_threshold"] = words(np.concatenate(sets))
        body = "".join(f"{key}={value}\n" for key, value in lines.items())
        return f"Tree={number}\n{body}is_linear=0\nshrinkage=1\n\n\n"

    def shape(self, leaves: int) -> tuple[list[int], list[int]]:
        """Split a leaf, any leaf or always the same side, until there are enough; leaves are numbered at random."""
        left, right = [0] * (leaves - 1), [0] * (leaves - 1)
        tips: list[tuple[int, int]] = [(-1, 0)]  # (parent, side)
        for node in range(leaves - 1):
            parent, side = tips.pop(len(tips) - 1 if self.chain else int(self.rng.integers(len(tips))))
            if parent >= 0:
                (left, right)[side][parent] = node
            sides = [(node, 0), (node, 1)]
            tips += sides if self.rng.random() < 0.9 else sides[::-1]
        for leaf, (parent, side) in zip(self.rng.permutation(leaves).tolist(), tips, strict=True):
            if parent >= 0:
                (left, right)[side][parent] = -1 - leaf
        return left, right

    def rows(self, count: int) -> NDArray[np.float64]:
        """[rows, features]: values at, just below and just above thresholds, odd numbers, and categories."""
        shape = (count, self.features)
        cuts = self.rng.choice(np.array([*self.cuts, 0.5]), shape)
        near = np.nextafter(cuts, self.rng.choice([-np.inf, np.inf], shape))
        odd = self.rng.choice(np.array(ODD), shape)
        codes = self.rng.choice(np.append(np.arange(-2, 100) + 0.0, [-0.5, 0.5, 31.9, 95.999]), shape)
        kind = self.rng.integers(0, 4, shape)
        return np.choose(kind, [cuts, near, odd, codes])


def words(numbers: object) -> str:
    return " ".join(str(number) for number in np.asarray(numbers).tolist())


def assert_same_bits(text: str, rows: NDArray[np.float64]) -> None:
    trees = Trees(parse_model(text))
    ours = trees.score(np.ascontiguousarray(rows.T), trees.names)
    assert ours.dtype == np.float64
    if len(rows) == 0:
        assert ours.shape == (0,)
        return
    theirs = lightgbm.Booster(model_str=text).predict(rows, raw_score=True, num_threads=1)
    np.testing.assert_array_equal(ours.view(np.int64), np.asarray(theirs).view(np.int64))


@settings(max_examples=300, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    features=st.integers(1, 12),
    trees=st.integers(1, 12),
    leaves=st.sampled_from([1, 2, 5, 8, 9, 31, 63, 64, 65, 129, 300]),
    rows=st.sampled_from(ROWS),
    alike=st.floats(0, 1),
)
def test_drawn_models_score_as_lightgbm_does(
    seed: int, features: int, trees: int, leaves: int, rows: int, alike: float
) -> None:
    drawn = Drawn(seed, features, trees, leaves)
    matrix = drawn.rows(rows)
    said_of_all = drawn.rng.random(features) < alike  # as what is known of the user is, for every candidate
    matrix[:, said_of_all] = matrix[:1, said_of_all]
    assert_same_bits(drawn.text, matrix)


PLAIN = """
from numba.core import config
from tests.test_ranking_trees import few_scores
assert config.CPU_NAME == "generic"
print(few_scores())
"""


def few_scores() -> list[list[str]]:
    """The scores of one drawn model for blocks of every width, to the last bit."""
    drawn = Drawn(0, 5, 9, 100)
    trees = Trees(parse_model(drawn.text))
    blocks = [np.ascontiguousarray(drawn.rows(rows).T) for rows in (1, 200, 500)]
    return [[score.hex() for score in trees.score(block, trees.names).tolist()] for block in blocks]


def test_a_processor_with_narrow_vectors_scores_the_same(tmp_path: Path) -> None:
    assert printed_on_a_plain_processor(PLAIN, tmp_path) == str(few_scores())


@pytest.mark.parametrize(("leaves", "chain"), [(3_000, True), (100_000, False)])
def test_a_tree_of_thousands_of_leaves(leaves: int, chain: bool) -> None:
    drawn = Drawn(1, 3, 1, 2)
    drawn.chain, drawn.categorical = chain, np.zeros(3, np.bool_)
    drawn.rng = np.random.default_rng(4)
    section = drawn.tree(0, leaves)
    head, _, _ = drawn.text.partition("tree_sizes=")
    assert_same_bits(f"{head}tree_sizes={len(section)}\n\n{section}end of trees\n", drawn.rows(500))


TRAININGS: dict[str, dict[str, Any]] = {
    "lambdarank": {"objective": "lambdarank"},
    "binary": {"objective": "binary"},
    "zero_as_missing": {"objective": "binary", "zero_as_missing": True},
    "no_missing": {"objective": "regression", "use_missing": False},
    "dart": {"objective": "binary", "boosting": "dart"},
    "forest": {"objective": "binary", "boosting": "rf", "bagging_freq": 1, "bagging_fraction": 0.6},
    "goss": {"objective": "binary", "data_sample_strategy": "goss"},
    "fine_bins": {"objective": "regression", "max_bin": 2000, "min_data_in_bin": 1},
    "monotone": {"objective": "regression", "monotone_constraints": [1, -1, 0, 0, 0, 0, 0, 0]},
}


def table(seed: int, rows: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Eight columns [rows, 8]: plain, with gaps, mostly zero, constant, of two values, heavy-tailed, two of codes."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, 8))
    x[rng.random(rows) < 0.3, 1] = np.nan
    x[rng.random(rows) < 0.8, 2] = 0.0
    x[:, 3] = 4.0
    x[:, 4] = rng.integers(0, 2, rows)
    x[:, 5] = np.exp(3 * x[:, 5])
    x[:, 6] = rng.integers(0, 70, rows)
    x[:, 7] = np.where(rng.random(rows) < 0.1, np.nan, rng.integers(0, 6, rows))
    signal = x[:, 0] + np.nan_to_num(x[:, 1], nan=1.5) * x[:, 2] + np.sin(x[:, 6]) + (np.nan_to_num(x[:, 7]) % 2)
    return x, signal + rng.normal(size=rows)


@pytest.mark.parametrize("leaves", [5, 31, 63, 255])
@pytest.mark.parametrize("training", TRAININGS)
def test_trained_models_score_as_lightgbm_does(training: str, leaves: int) -> None:
    x, signal = table(leaves, 3000)
    parameters = {**TRAININGS[training], "num_leaves": leaves, "min_data_in_leaf": 3, "verbose": -1, "num_threads": 1}
    label = signal if parameters["objective"] == "regression" else (signal > 1).astype(float)
    group = np.full(30, 100) if training == "lambdarank" else None
    codes = [6, 7] if training in {"binary", "lambdarank", "fine_bins", "goss"} else []
    booster = lightgbm.train(parameters, lightgbm.Dataset(x, label, group=group, categorical_feature=codes), 20)
    fresh, _ = table(99, 700)
    rng = np.random.default_rng(3)
    fresh[rng.random(fresh.shape) < 0.05] = np.nan
    fresh[rng.random(fresh.shape) < 0.05] = rng.choice(ODD)
    assert_same_bits(booster.model_to_string(num_iteration=-1), fresh)


@pytest.mark.parametrize("objective", ["binary", "cross_entropy"])
def test_probabilities_are_lightgbms(objective: str) -> None:
    x, signal = table(5, 2000)
    parameters = {"objective": objective, "sigmoid": 1.7, "verbose": -1, "num_threads": 1}
    booster = lightgbm.train(parameters, lightgbm.Dataset(x, signal > 1), 10)
    trees = Trees(parse_model(booster.model_to_string()))
    raw = trees.score(x.T, trees.names)
    np.testing.assert_allclose(trees.probability(raw), np.asarray(booster.predict(x)), rtol=1e-14)
    assert np.array_equal(trees.probability(np.array([-1e9, 0.0, 1e9])), [0.0, 0.5, 1.0])


def test_a_ranking_model_has_no_probabilities() -> None:
    trees = Trees(parse_model(Drawn(0, 3, 2, 9).text))
    with pytest.raises(ValueError, match="lambdarank"):
        trees.probability(np.zeros(3))


def test_a_model_without_trees_scores_zero() -> None:
    text = Drawn(0, 3, 0, 9).text
    trees = Trees(parse_model(text))
    assert trees.score(np.ones((3, 4)), trees.names).tolist() == [0.0] * 4
    assert trees.explain(np.ones((3, 4)), trees.names)["bias"].tolist() == [0.0] * 4


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32), leaves=st.sampled_from([1, 9, 63, 100]))
def test_contributions_add_up_to_the_score(seed: int, leaves: int) -> None:
    drawn = Drawn(seed, 6, 8, leaves)
    trees = Trees(parse_model(drawn.text))
    matrix = np.ascontiguousarray(drawn.rows(40).T)
    parts = trees.explain(matrix, trees.names)
    assert list(parts) == ["bias", *trees.names]
    total = np.sum([np.asarray(column) for column in parts.values()], axis=0)
    np.testing.assert_allclose(total, trees.score(matrix, trees.names), rtol=1e-9, atol=1e-9)


def test_a_feature_that_no_path_meets_contributes_nothing() -> None:
    x, signal = table(5, 2000)
    booster = lightgbm.train(
        {"objective": "regression", "verbose": -1, "num_threads": 1}, lightgbm.Dataset(x, signal), 5
    )
    trees = Trees(parse_model(booster.model_to_string()))
    parts = trees.explain(x[:50].T, trees.names)
    assert not parts["Column_3"].any()  # the constant column
    assert parts["Column_0"].any()
    bias = float(parts["bias"][0])
    assert bias == pytest.approx(float(np.mean(booster.predict(x, raw_score=True))), rel=1e-6)


def test_columns_may_come_in_any_order_and_number() -> None:
    drawn = Drawn(7, 5, 6, 31)
    trees = Trees(parse_model(drawn.text), ["a", "b", "c", "d", "e"])
    matrix = np.ascontiguousarray(drawn.rows(50).T)
    expected = trees.score(matrix, ("a", "b", "c", "d", "e"))
    shuffled = np.ascontiguousarray(matrix[[4, 0, 2, 2, 1, 3]])
    assert np.array_equal(trees.score(shuffled, ("e", "a", "unused", "c", "b", "d")), expected)
    assert np.array_equal(trees.score(matrix, ("a", "b", "c", "d", "e")), expected)


def test_missing_columns_are_named() -> None:
    trees = Trees(parse_model(Drawn(7, 3, 2, 9).text), ["price", "age", "rating"])
    with pytest.raises(MissingColumnsError, match=r"'price', 'rating'.*did you mean 'prices'"):
        trees.score(np.ones((2, 4)), ("age", "prices"))
    with pytest.raises(ValueError, match="shape"):
        trees.score(np.ones((2, 4)), ("price", "age", "rating"))


def test_a_file_is_read_and_its_place_is_named(tmp_path: Path) -> None:
    path = tmp_path / "trees.txt"
    drawn = Drawn(7, 3, 2, 9)
    path.write_text(drawn.text)
    assert Trees.load(path).names == ("f0", "f1", "f2")
    path.write_bytes(b"tree\n\xff\xfe")
    with pytest.raises(ModelTextError, match=r"trees\.txt: not UTF-8 at byte 5"):
        Trees.load(path)


def broken(find: str, replace: str, occurrence: int = 0) -> str:
    text = Drawn(12, 3, 3, 12).text
    lines = text.split("\n")
    at = [number for number, line in enumerate(lines) if line.startswith(find)][occurrence]
    lines[at] = replace
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "line 1: found ''; a LightGBM model text begins with 'tree'"),
        ("import os", "begins with 'tree'"),
        (Drawn(12, 3, 3, 12).text[:-200], "no line 'end of trees'"),
        (broken("num_tree_per_iteration", "num_tree_per_iteration=3"), "multiclass"),
        (broken("max_feature_idx", "max_feature_idx=two"), "line 6: max_feature_idx: found 'two'"),
        (broken("max_feature_idx", ""), "max_feature_idx: missing from this section"),
        (broken("feature_names", "feature_names=a b"), "found 2 names; max_feature_idx says 3"),
        (broken("tree_sizes", "tree_sizes=1 2"), "announces 2 trees, found 3"),
        (broken("is_linear", "is_linear=1", 1), "linear trees are not supported"),
        (broken("leaf_value", "leaf_value=1 2 3"), "leaf_value: found 3 values; expected"),
        (broken("leaf_value", ""), "leaf_value: missing from this section"),
        (broken("num_leaves", "num_leaves=0"), "expected at least 1"),
        (broken("split_feature", "split_feature=9 9 9"), "split_feature"),
        (broken("threshold", "threshold=a b"), "threshold: could not convert string to float: 'a'"),
        (broken("left_child", "left_child=0 0 0"), "left_child"),
        (broken("decision_type", "decision_type=12 1 1 1"), "expected whole numbers from 0 to 11"),
    ],
)
def test_what_is_malformed_is_refused_with_its_place(text: str, complaint: str) -> None:
    with pytest.raises(ModelTextError) as caught:
        parse_model(text, "model.txt")
    assert str(caught.value).startswith("model.txt")
    assert complaint in str(caught.value)


def small(**changes: str) -> str:
    """One tree of four leaves, with some of its lines replaced."""
    lines = {
        "num_leaves": "4", "num_cat": "1", "split_feature": "0 1 1", "threshold": "0 0.5 2", "decision_type": "1 2 2",
        "left_child": "1 -1 -3", "right_child": "2 -2 -4", "leaf_value": "1 2 3 4", "leaf_count": "1 1 1 1",
        "cat_boundaries": "0 1", "cat_threshold": "5", **changes,
    }  # fmt: skip
    body = "".join(f"{key}={value}\n" for key, value in lines.items())
    return (
        "tree\nnum_class=1\nnum_tree_per_iteration=1\nlabel_index=0\nmax_feature_idx=1\nfeature_names=a b\n"
        f"feature_infos=none none\ntree_sizes=1\n\nTree=0\n{body}\n\nend of trees\n"
    )


def test_the_small_tree_is_sound() -> None:
    assert len(parse_model(small()).trees) == 1


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"left_child": "1 0 -3"}, "line 16: left_child: found a child that does not come after its parent"),
        ({"right_child": "2 -1 -4"}, "two parents"),
        ({"threshold": "0 nan 2"}, "not a number"),
        ({"threshold": "1 0.5 2"}, "category set outside 0..0"),
        ({"threshold": "0.5 0.5 2"}, "category set outside 0..0"),
        ({"cat_boundaries": "1 2"}, "do not start at 0"),
        ({"cat_boundaries": "0 0"}, "do not start at 0"),
        ({"cat_threshold": "-5"}, "from 0 to 4294967295"),
        ({"leaf_value": "1 2 inf 4"}, "not finite"),
        ({"split_feature": "0 1 2"}, "from 0 to 1"),
        ({"split_feature": "0 1 nan"}, "from 0 to 1"),
        ({"num_cat": "-1", "cat_boundaries": ""}, "num_cat: found -1; expected 0 or more"),
        ({"num_leaves": "1e9"}, "found '1e9'; expected a whole number"),
    ],
)
def test_what_is_no_tree_is_refused(changes: dict[str, str], complaint: str) -> None:
    with pytest.raises(ModelTextError, match=complaint):
        parse_model(small(**changes))


def test_features_of_one_name_are_refused() -> None:
    with pytest.raises(ModelTextError, match="feature_names: found 'a' twice"):
        parse_model(small().replace("feature_names=a b", "feature_names=a a"))


FUZZED = Drawn(12, 4, 3, 20).text


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_damage_is_refused_or_harmless(data: st.DataObject) -> None:
    text = FUZZED
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(text)))
        cut = data.draw(st.sampled_from([0, 1, 1, 5, 200]))
        text = text[:at] + data.draw(st.text("0123456789-. =\ntre", max_size=3)) + text[at + cut :]
    try:
        trees = Trees(parse_model(text))
    except ModelTextError:
        return
    matrix = np.ones((len(trees.names), 3))
    assert trees.score(matrix, trees.names).shape == (3,)
    assert len(trees.explain(matrix, trees.names)) == len(trees.names) + 1
