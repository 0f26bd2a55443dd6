"""The report of a release as rows for people: how good each method is, and where the held-out positives were lost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shortlist.training.releases import Release

Rows = tuple[tuple[str, ...], list[tuple[str, ...]]]
SLATE = ("ndcg@10", "recall@10", "mrr@10")
TITLES = {"ndcg@10": "NDCG@10", "recall@10": "Recall@10", "mrr@10": "MRR@10"}
LOSSES = {
    "in_slate": "shown among the first ten",
    "ranked_below": "retrieved, ranked below ten",
    "not_retrieved": "not retrieved",
    "filtered": "filtered: seen already or not available",
    "not_in_catalogue": "not in the catalogue yet",
}


def evaluation(release: Release) -> Mapping[str, Any]:
    """What the trainer measured on the held-out slice."""
    found: Mapping[str, Any] = release.manifest.details["evaluation"]
    return found


def as_document(release: Release) -> dict[str, Any]:
    """The release and its report as JSON."""
    manifest = release.manifest
    return {
        "version": release.version,
        "project": manifest.project,
        "seed": manifest.seed,
        "log_position": manifest.log_position,
        "ranker": manifest.ranker,
        "metrics": dict(manifest.metrics),
        **evaluation(release),
    }


def quality_rows(release: Release) -> Rows:
    """One row per method: metrics with their 95 % intervals by user, coverage, and recall where it is a source."""
    report = evaluation(release)
    rows = []
    for name, measured in report["methods"].items():
        figures = [with_interval(measured[metric]) for metric in SLATE]
        found = report["retrieval"].get("merged" if name == "two_stage" else name, {})
        depths = [plain(found.get(f"recall@{depth}", {}).get("value")) for depth in (100, 500)]
        rows.append((method_name(release, name), *figures, share(measured["coverage@10"]), *depths))
    return ("method", *(TITLES[metric] for metric in SLATE), "coverage", "Recall@100", "@500"), rows


def method_name(release: Release, name: str) -> str:
    """The method as people know it; the one that serves says which ranker it is."""
    words = name.replace("_", " ")
    return f"{words} (serves: {release.manifest.ranker})" if name == "two_stage" else words


def loss_rows(release: Release) -> Rows:
    """What became of the held-out positives, stage by stage."""
    losses = evaluation(release)["losses"]
    total = max(losses["positives"], 1)
    rows: list[tuple[str, ...]] = [
        (text, f"{losses[name]:,}", f"{losses[name] / total:.1%}") for name, text in LOSSES.items()
    ]
    return ("held-out positives", "count", "share"), rows


def with_interval(measured: Mapping[str, float | None]) -> str:
    """`0.1234 ±0.0056`: the value and half of its 95 % interval."""
    value, low, high = measured["value"], measured["low"], measured["high"]
    if value is None or low is None or high is None:
        return "-"
    return f"{value:.3f} ±{(high - low) / 2:.3f}"


def plain(value: float | None) -> str:
    """A figure, or a dash where nothing was measured."""
    return "-" if value is None else f"{value:.3f}"


def share(value: float | None) -> str:
    """A share in percent."""
    return "-" if value is None else f"{value:.1%}"
