"""Two towers: examples a second beside a plain PyTorch loop of the same model, and the time to a library's quality.

The plain loop is in `_plain_towers.py`. The public library is TensorFlow Recommenders, in its own environment: both
learn the oldest four fifths of MovieLens latest-small from what users rated last, and are asked for the rest. Equal
quality is the best recall@100 that the worse of the two ever reaches; evaluation is on nobody's clock.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bench._plain_towers import PlainTowers, learn
from bench.peers import environment
from shortlist.events.schema import Entity
from shortlist.features.definitions import EventType
from shortlist.features.entities import Ragged
from shortlist.movielens import read_movielens
from shortlist.retrieval.models.towers import AttributeColumn
from shortlist.retrieval.specs import TwoTower
from shortlist.retrieval.vectors.index import Vectors
from shortlist.training.towers.data import TowerExamples, TowerItems
from shortlist.training.towers.fitting import CPU, deterministic, device_of, fit, half_precision_products, prepared

DATA = Path(os.environ.get("SHORTLIST_DATA", "../shared/data")) / "ml-latest-small"
LIBRARY = ("tensorflow-recommenders==0.7.7", "tensorflow-cpu==2.20.0", "tf-keras==2.20.1")
LIBRARY_MODELS = (("gru", 0.1), ("mean", 0.003))
"""How the library reads histories, and at which rate: its tutorial's way, and a mean with Adam; the faster counts."""
LIBRARY_SECONDS = 90
K, SHARE, HISTORY, ASKED = 100, 0.8, 50, 4_000
Ints = NDArray[np.int64]
Curve = list[tuple[float, float]]
"""(seconds of training, recall) after each epoch."""

watch = EventType("watch", Entity("user"), Entity("film"))
history = watch.by(watch.keys[0]).last("film", HISTORY)


def options(parser: argparse.ArgumentParser) -> None:
    """Where the data is."""
    parser.add_argument("--data", type=Path, default=DATA, help=f"folder of a MovieLens release [{DATA}]")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Both comparisons; `--quick` leaves out the library."""
    figures = throughput(arguments.quick)
    return {**figures, **({"speedup_public": None} if arguments.quick else to_equal_quality(arguments.data))}


def throughput(quick: bool) -> dict[str, Any]:
    """Examples a second on the processor, and on CUDA where there is any."""
    spec, examples, items = drawn(4_000, 10_000, 20_000, 64) if quick else drawn(20_000, 50_000, 30_000, 256)
    figures: dict[str, Any] = {}
    for device in dict.fromkeys([CPU, device_of()]):
        fitting, _ = prepared(spec, examples, items, 0, device)
        plain = PlainTowers(fitting, examples).to(device)
        rows, nobody = torch.arange(len(examples), device=device), torch.empty(0, dtype=torch.int64, device=device)

        taken: dict[str, list[float]] = {"ours": [], "plain": [], "rounded": []}
        for _turn in range(2):
            with deterministic(device), half_precision_products():
                taken["ours"].append(seconds_of(partial(fit, fitting, rows, nobody, 1, 1, lambda *_: None), device))
            taken["plain"].append(seconds_of(partial(learn, plain, rows), device))
            with half_precision_products():
                taken["rounded"].append(seconds_of(partial(learn, plain, rows), device))
        rate = {name: len(examples) / min(seconds) for name, seconds in taken.items()}
        print(f"{device.type}: examples/s { ({name: round(value) for name, value in rate.items()}) }", flush=True)
        prefix = "" if device.type == "cpu" else "cuda_"
        figures |= {
            f"{prefix}ratio_plain": round(rate["ours"] / rate["plain"], 2),
            f"{prefix}ratio_plain_same_precision": round(rate["ours"] / rate["rounded"], 2),
            f"{prefix}examples_per_s": round(rate["ours"]),
            f"{prefix}plain_examples_per_s": round(rate["plain"]),
        }
    return figures


def seconds_of(call: Callable[[], object], device: torch.device) -> float:
    """How long a call takes, what it left to the device included."""
    begun = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begun


def drawn(users: int, items: int, examples: int, dimensions: int) -> tuple[TwoTower, TowerExamples, TowerItems]:
    """Examples with popular and rare items, full histories, an attribute of each kind on either side."""
    rng = np.random.default_rng(0)
    numbers = np.arange(1, items + 1).astype(np.uint64)
    shares = 1 / np.arange(10, items + 10)
    drawn_items = rng.choice(numbers, examples * (HISTORY + 1), p=shares / shares.sum()).reshape(examples, -1)
    country = Ragged(rng.integers(1, 50, examples).astype(np.uint64), np.arange(examples + 1))
    columns: dict[str, AttributeColumn] = {"country": country, "age": rng.normal(40, 10, examples)}
    tags = Ragged(rng.integers(1, 1_000, 3 * items).astype(np.uint64), 3 * np.arange(items + 1))
    who, when = rng.integers(1, users + 1, examples).astype(np.uint64), np.arange(examples)
    learned = TowerExamples(who, drawn_items[:, 1:].copy(), drawn_items[:, 0].copy(), when, columns)
    spec = TwoTower(history, ("country", "age"), ("tags", "year"), dimensions=dimensions, sequence=False)
    return spec, learned, TowerItems(numbers, {"tags": tags, "year": rng.normal(2000, 10, items)})


@dataclass(frozen=True)
class Ratings:
    """n ratings in order of time, users and films by number from 1: what each user had rated before, newest first.

    `learned` of them are learned from; `asked` are some of the others, the newest fifth.
    """

    user: Ints
    item: Ints
    at: Ints
    before: Ints
    learned: int
    asked: Ints

    @classmethod
    def read(cls, folder: Path) -> Ratings:
        """All of a MovieLens release."""
        watches = read_movielens(folder).watches
        order = np.lexsort((watches.at, watches.user))
        user, item = (np.unique(ids[order], return_inverse=True)[1] + 1 for ids in (watches.user, watches.film))
        place = np.arange(len(user)) - np.searchsorted(user, user)
        back = np.arange(1, HISTORY + 1)
        earlier = item[np.maximum(np.arange(len(item))[:, None] - back, 0)]
        before = np.where(place[:, None] >= back, earlier, 0)
        newest = np.argsort(watches.at[order], kind="stable")
        learned = int(SHARE * len(newest))
        asked = np.linspace(learned, len(newest) - 1, ASKED).astype(np.int64)
        return cls(user[newest], item[newest], watches.at[order][newest], before[newest], learned, asked)

    def recall(self, queries: Vectors, items: Vectors) -> float:
        """The share of the asked whose film is among the first 100 of all; row i of `items` is film i + 1."""
        first = np.argpartition(-(queries @ items.T), K, axis=1)[:, :K] + 1
        return float((first == self.item[self.asked][:, None]).any(axis=1).mean())


def to_equal_quality(folder: Path) -> dict[str, Any]:
    """Seconds of training to equal recall, ours and the library's; it is at its best, whichever way that is."""
    ratings = Ratings.read(folder)
    ours = our_curve(ratings)
    curves = {f"{query}, rate {rate}": library_curve(ratings, query, rate) for query, rate in LIBRARY_MODELS}
    best, best_of = best_recall(ours), {name: best_recall(curve) for name, curve in curves.items()}
    target = min(best, max(best_of.values()))
    reached = {name: seconds_to(curve, target) for name, curve in curves.items() if best_of[name] >= target}
    fastest = min(reached, key=lambda name: reached[name])
    return {
        "speedup_public": round(reached[fastest] / seconds_to(ours, target), 2),
        "equal_recall_100": round(target, 4),
        "ours_s": round(seconds_to(ours, target), 2),
        "public_s": round(reached[fastest], 2),
        "public": f"TensorFlow Recommenders, {fastest}",
        "best_recall_100": {"ours": round(best, 4), **{name: round(value, 4) for name, value in best_of.items()}},
    }


def best_recall(curve: Curve) -> float:
    """The greatest recall of any epoch."""
    return max(recall for _, recall in curve)


def seconds_to(curve: Curve, target: float) -> float:
    """When a recall was first reached."""
    return next(seconds for seconds, recall in curve if recall >= target)


def our_curve(ratings: Ratings) -> Curve:
    """After each epoch of our two towers on ids alone: the user, and what they rated last."""
    spec, begun, evaluating, curve = TwoTower(history, dimensions=64, epochs=8), time.perf_counter(), 0.0, Curve()
    rows = np.concatenate([np.arange(ratings.learned), ratings.asked])
    user, before, item = (values[rows].astype(np.uint64) for values in (ratings.user, ratings.before, ratings.item))
    examples = TowerExamples(user, before, item, ratings.at[rows], {})
    items = TowerItems(np.unique(ratings.item).astype(np.uint64), {})
    asked, nobody = torch.arange(ratings.learned, len(rows)), torch.empty(0, dtype=torch.int64)
    with deterministic(), half_precision_products():
        fitting, _ = prepared(spec, examples, items, 0)

        def after(_step: str, _share: float) -> None:
            nonlocal evaluating
            stopped = time.perf_counter()
            recall = ratings.recall(fitting.user_vectors(asked).numpy(), fitting.item_vectors().numpy())
            curve.append((stopped - begun - evaluating, recall))
            print(f"  ours {curve[-1][0]:7.2f} s  recall@100 {recall:.4f}", flush=True)
            evaluating += time.perf_counter() - stopped

        fit(fitting, torch.arange(ratings.learned), nobody, K, spec.epochs, after)
    return curve


def library_curve(ratings: Ratings, query: str, rate: float) -> Curve:
    """After each epoch of the library's two towers, on what users rated last."""
    python, curve = environment("tfrs", *LIBRARY), Curve()
    with tempfile.TemporaryDirectory() as place:
        np.savez(
            Path(place) / "train.npz",
            history=ratings.before[: ratings.learned, ::-1],
            item=ratings.item[: ratings.learned],
            asked=ratings.before[ratings.asked, ::-1],
            items=ratings.item.max(),
        )
        script = Path(__file__).with_name("_tfrs_train.py")
        command = [str(python), str(script), place, query, str(rate), str(LIBRARY_SECONDS)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        for epoch, line in enumerate(done.stdout.splitlines()):
            held = np.load(Path(place) / f"epoch_{epoch}.npz")
            curve.append((json.loads(line)["seconds"], ratings.recall(held["queries"], held["items"][1:])))
            print(f"  {query}, rate {rate}: {curve[-1][0]:7.2f} s  recall@100 {curve[-1][1]:.4f}", flush=True)
    return curve
