"""Recommendation quality on MovieLens latest-small: the films template as it comes, two splits.

*by_time*: the last fifth of the ratings, requests of the past, as `shortlist train` measures it. *by_user*: the last
fifth of each user's ratings is held out; what they gave four stars or more is relevant; what else they rated is seen.
"""

from __future__ import annotations

import argparse
import math
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from shortlist.events.log import MemoryLog
from shortlist.features.table import FeatureTable
from shortlist.movielens import Actions, MovieLens, read_movielens
from shortlist.pipeline.query import Deadline, Query, Slate
from shortlist.pipeline.stages import Observer
from shortlist.project import Project
from shortlist.serving.recommend import load_champion
from shortlist.templates.films.project import project
from shortlist.training.assembly import load_retrieval
from shortlist.training.metrics import intervals
from shortlist.training.releases import Release
from shortlist.training.train import train

K, LIKED, SHARE = 10, 4.0, 0.8
DATA = Path(os.environ.get("SHORTLIST_DATA", "../shared/data")) / "ml-latest-small"
Floats = NDArray[np.float64]


def options(parser: argparse.ArgumentParser) -> None:
    """Where the data is."""
    parser.add_argument("--data", type=Path, default=DATA, help=f"folder of a MovieLens release [{DATA}]")


def logged(data: MovieLens) -> MemoryLog:
    """The release as a log."""
    log = MemoryLog(project.schemas)
    for table in data.events():
        receipt = log.append(table, received=data.last)
        if receipt.refusals:
            raise RuntimeError(f"{len(receipt.refusals)} events were refused: {receipt.refusals[0].reason}")
    return log


def learned(data: MovieLens, folder: Path) -> tuple[MemoryLog, Release]:
    """The log, and the release that is learned from all of it."""
    log = logged(data)
    return log, train(project, log, folder, progress=lambda *_: None)


def by_time(data: MovieLens, folder: Path) -> dict[str, Any]:
    """What training measured on its last fifth: NDCG@10 of every method, with its gain over popularity."""
    _, release = learned(data, folder)
    details = release.manifest.details
    for finding in details["findings"]:
        print(f"  {finding}", flush=True)
    print(f"  sources {details['sources']}", flush=True)
    print(f"  chosen {details['chosen']}", flush=True)
    print(f"  retrieval {details['evaluation']['retrieval']}", flush=True)
    methods = {
        name: {
            "ndcg_10": found["ndcg@10"],
            "recall_10": found["recall@10"],
            "over": found["over_popularity"]["ndcg@10"],
        }
        for name, found in details["evaluation"]["methods"].items()
    }
    return {"methods": methods, "sources": list(release.manifest.sources), "ranker": release.manifest.ranker}


def split(data: MovieLens) -> tuple[MovieLens, dict[str, set[str]]]:
    """Without the last fifth of each user's ratings; and the films among those that they liked, by user."""
    watches = data.watches
    order = np.lexsort((watches.at, watches.user))
    users, counts = np.unique(watches.user, return_counts=True)
    place = np.empty(len(watches), np.int64)
    place[order] = np.arange(len(watches)) - np.repeat(np.cumsum(counts) - counts, counts)
    kept = place < np.round(SHARE * counts)[np.searchsorted(users, watches.user)]
    stars = np.asarray(watches.value.to_numpy(zero_copy_only=False), np.float64)
    relevant: dict[str, set[str]] = {}
    for row in np.flatnonzero(~kept & (stars >= LIKED)):
        relevant.setdefault(str(watches.user[row]), set()).add(str(watches.film[row]))
    rest = Actions(watches.user[kept], watches.film[kept], watches.at[kept], watches.value.filter(pa.array(kept)))
    return replace(data, watches=rest), relevant


def by_user(data: MovieLens, folder: Path) -> dict[str, Any]:
    """NDCG@10 and Recall@10 of every source alone and of what serves, on what each user liked next."""
    known, relevant = split(data)
    log, release = learned(known, folder)
    answers = answerers(project, release, log)
    scores: dict[str, dict[str, list[float]]] = {name: {"ndcg_10": [], "recall_10": []} for name in answers}
    for user, liked in relevant.items():
        for name, answer in answers.items():
            hits = np.array([item in liked for item in answer(user)], np.float64)
            discounts = 1 / np.log2(np.arange(2, K + 2))
            gained = float(hits @ discounts[: len(hits)]) / float(discounts[: min(K, len(liked))].sum())
            scores[name]["ndcg_10"].append(gained)
            scores[name]["recall_10"].append(float(hits.sum()) / len(liked))
    found = intervals({name: np.array(held["ndcg_10"]) for name, held in scores.items()}, "popular", 0)
    methods = {
        name: {
            "ndcg_10": found[name][0].to_dict(),
            "recall_10": round(float(np.mean(held["recall_10"])), 4),
            "over": found[name][1].to_dict(),
        }
        for name, held in scores.items()
    }
    return {"users": len(relevant), "methods": methods, "ranker": release.manifest.ranker}


def answerers(of: Project, release: Release, log: MemoryLog) -> Mapping[str, Callable[[str], Sequence[str]]]:
    """By name: each source of the release, and all of it ("two_stage"), over the log as it is."""
    table = FeatureTable(of.feature_set())
    for batch in log.scan():
        table.update(batch)
    now = 1 + max(int(batch.at.max()) for batch in log.scan())
    retrieval = load_retrieval(of, release.directory, release.manifest.sources, table)
    champion = load_champion(of, release, table, Unobserved(), lambda _: None)
    ids = table.entities[of.item.name].ids

    def ask(user: str) -> Query:
        return Query(user, K, now, "bench", Deadline(math.inf))

    def alone(source: Any) -> Callable[[str], list[str]]:
        return lambda user: [ids[item] for item in source.propose(ask(user)).items[:K]]

    return {
        **{source.name: alone(source) for source in retrieval.sources},
        "two_stage": lambda user: champion.recommend.rank(ask(user)).items,
    }


class Unobserved(Observer):
    """Nobody watches."""

    name = "unobserved"

    def observe(self, query: Query, slate: Slate, shown: Any) -> None:
        """Keep nothing."""


def best_source(methods: Mapping[str, Any], sources: Iterable[str]) -> float:
    """NDCG@10 of the best source alone."""
    return max(float(methods[name]["ndcg_10"]["value"]) for name in sources if name in methods)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Both splits."""
    data = read_movielens(arguments.data)
    answer: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as place:
        for name, measured in (("by_time", by_time), ("by_user", by_user)):
            if arguments.quick and name == "by_user":
                continue
            print(f"{name}:", flush=True)
            found = measured(data, Path(place) / name)
            for method, figures in found["methods"].items():
                print(f"  {method:22} {figures}", flush=True)
            sources = [spec.name for spec in project.sources]
            popular = found["methods"].get("popularity") or found["methods"]["popular"]
            answer[name] = {
                "popularity": popular["ndcg_10"]["value"],
                "best_source": best_source(found["methods"], [*sources, "popularity"]),
                "two_stage": found["methods"]["two_stage"]["ndcg_10"]["value"],
                **found,
            }
    return answer
