"""Trees: our bit-vector scorer beside LightGBM's own predict, on one thread, in the same run.

Figures of record: 500 rows x 60 features, 300 trees x 63 leaves; also 1, 100 and 1000 rows, and 31 and 255 leaves.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np

from shortlist.ranking.trees import Trees

FEATURES, TREES = 60, 300
RECORD = (500, 63)
SHAPES = [(1, 63), (100, 63), RECORD, (1000, 63), (500, 31), (500, 255)]


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Train a model for each number of leaves, time both scorers in turns, and compare every bit."""
    turns = 40 if arguments.quick else 200
    models = {leaves: train(leaves) for leaves in sorted({leaves for _, leaves in SHAPES})}
    print(f"{FEATURES} features, {TREES} trees, one thread, median CPU time of {turns} turns\n")
    print(f"{'rows':>6} {'leaves':>6} {'ours ms':>9} {'LightGBM ms':>12} {'speedup':>8} {'largest difference':>19}")
    found = {shape: compare(*models[shape[1]], rows=shape[0], turns=turns) for shape in SHAPES}
    for (rows, leaves), (ours, theirs, difference) in found.items():
        print(f"{rows:>6} {leaves:>6} {ours:>9.3f} {theirs:>12.3f} {theirs / ours:>8.1f} {difference:>19g}")
    with tempfile.TemporaryDirectory() as cache:
        cold, warm = start_up(cache), start_up(cache)
    print(f"\nimport of the scorer: {cold:.2f} s where its kernel must be compiled, {warm:.2f} s where it is cached")
    ours, theirs, _ = found[RECORD]
    return {
        "speedup_lightgbm": round(theirs / ours, 2),
        "largest_difference": max(difference for _, _, difference in found.values()),
        "ours_ms": round(ours, 4),
        "lightgbm_ms": round(theirs, 4),
        "speedup_by_rows_and_leaves": {f"{r}x{n}": round(b / a, 2) for (r, n), (a, b, _) in found.items()},
        "compile_s": round(cold - warm, 2),
    }


def train(leaves: int) -> tuple[Trees, lightgbm.Booster]:
    """A model of exactly the wanted number of trees and leaves, on drawn data with gaps in every third column."""
    rng = np.random.default_rng(leaves)
    x = rng.normal(size=(20_000, FEATURES))
    signal = x[:, :20] @ rng.normal(size=20) + 2 * np.sin(3 * x[:, 20]) + x[:, 1] * x[:, 2] + rng.normal(size=len(x))
    x[:, ::3][rng.random((len(x), FEATURES // 3)) < 0.2] = np.nan
    parameters = {
        "objective": "regression", "num_leaves": leaves, "learning_rate": 0.05, "min_data_in_leaf": 5, "seed": 1,
        "num_threads": 1, "verbose": -1,
    }  # fmt: skip
    text = lightgbm.train(parameters, lightgbm.Dataset(x, signal), TREES).model_to_string()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trees.txt"
        path.write_text(text)
        started = time.perf_counter()
        trees = Trees.load(path)
        print(f"{leaves} leaves: a text of {len(text) / 1e6:.1f} MB loaded in {time.perf_counter() - started:.2f} s")
    assert all(len(tree.leaf_value) == leaves for tree in trees.model.trees)
    return trees, lightgbm.Booster(model_str=text)


def compare(trees: Trees, booster: lightgbm.Booster, rows: int, turns: int) -> tuple[float, float, float]:
    """(our milliseconds, LightGBM's, largest difference); each reads the layout that suits it, made beforehand."""
    rng = np.random.default_rng(rows)
    x = rng.normal(size=(rows, FEATURES))
    x[:, ::3][rng.random((rows, FEATURES // 3)) < 0.2] = np.nan
    matrix = np.ascontiguousarray(x.T)

    def ours() -> Any:
        return trees.score(matrix, trees.names)

    def theirs() -> Any:
        return booster.predict(x, raw_score=True, num_threads=1)

    difference = float(np.abs(ours() - theirs()).max())
    times: tuple[list[float], list[float]] = [], []
    for _turn in range(turns):
        for scorer, taken in zip((ours, theirs), times, strict=True):
            taken.append(milliseconds(scorer))
    return float(np.median(times[0])), float(np.median(times[1])), difference


def milliseconds(call: Callable[[], Any]) -> float:
    """How long one call keeps its thread busy: both scorers never wait, and a busy machine does not count."""
    started = time.thread_time()
    call()
    return (time.thread_time() - started) * 1000


def start_up(cache: str) -> float:
    """CPU seconds of a new process that imports the scorer, with this folder as its cache of kernels."""
    command = [sys.executable, "-c", "import shortlist.ranking.trees"]
    before = os.times()
    subprocess.run(command, env={**os.environ, "NUMBA_CACHE_DIR": cache}, check=True)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system
