"""The report of a release as rows for people: how good each method is, and where the held-out positives were lost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shortlist.training.releases import Release

Rows = tuple[tuple[str, ...], list[tuple[str, ...]]]
SLATE = ("ndcg@10", "recall@10", "mrr@10")
TITLES = {"ndcg@10": "NDCG@10", "recall@10": "Recall@10", "mrr@10": "MRR@10"}
ORDER = {"popularity": 0, "logistic_regression": 1, "others": 2, "two_stage": 3}
CALIBRATION = ("rate", "calibration_error", "log_loss")
LOSSES = {
    "in_slate": "shown among the first ten",
    "ranked_below": "retrieved, ranked below ten",
    "not_retrieved": "not retrieved",
    "filtered": "filtered: seen already or not available",
    "not_in_catalogue": "not in the catalogue yet",
}


NAMED = 8
"""Columns that are named as left out."""
ROWS_LEFT_OUT = {
    "ranker_rows_left_out": "older rows are more than the rankers learn from; the newest were taken",
    "impressions_unclosed": "impressions are too new to say what follows them; they were left out",
    "contexts_unreadable": "impressions have a context that is no JSON object; it counts as missing",
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
        "calibration": calibration(release),
        "notes": notes(release),
        **evaluation(release),
    }


def quality_rows(release: Release) -> Rows:
    """One row per method: metrics with their 95 % intervals by user, coverage, and recall where it retrieves."""
    report = evaluation(release)
    rows: list[tuple[str, ...]] = []
    for name in sorted(report["methods"], key=lambda method: ORDER.get(method, len(ORDER) - 1)):
        measured = report["methods"][name]
        figures = [with_interval(measured[metric]) for metric in SLATE]
        found = report["retrieval"].get("merged" if name == "two_stage" else name, {})
        depths = [plain(found.get(f"recall@{depth}", {}).get("value")) for depth in (100, 500)]
        rows.append((name.replace("_", " "), *figures, share(measured["coverage@10"]), *depths))
    return ("method", *(TITLES[metric] for metric in SLATE), "coverage", "R@100", "R@500"), rows


def judged_on(release: Release) -> str:
    """What stands behind which figures, where it is not all the same; else nothing."""
    slates = evaluation(release)["shown_slates"]
    return f"NDCG@10, MRR@10: {slates:,} slates shown, ordered again; the rest: requests replayed" if slates else ""


def notes(release: Release) -> list[str]:
    """What the trainer found worth saying, what it left out, and which ranker the two stages end with."""
    ranker, details = release.manifest.ranker.replace("_", " "), release.manifest.details
    serves = f"two stage is what serves: the sources' candidates, ordered by {ranker}" if ranker else ""
    return [note for note in (serves, *details["findings"], *left_out(details)) if note]


def left_out(details: Mapping[str, Any]) -> Iterator[str]:
    """Columns that no ranker could use and rows that none learned from, each with the reason."""
    reasons: dict[str, str] = {}
    for fitted in details["rankers"].values():
        reasons |= fitted["dropped"]
    if reasons:
        named = [f"{name} ({reason})" for name, reason in list(reasons.items())[:NAMED]]
        more = f" and {len(reasons) - NAMED} more" if len(reasons) > NAMED else ""
        yield f"left out of the rankers: {', '.join(named)}{more}"
    for name, words in ROWS_LEFT_OUT.items():
        if details["data"][name]:
            yield f"{details['data'][name]:,} {words}"


def loss_rows(release: Release) -> Rows:
    """What became of the held-out positives, stage by stage."""
    losses = evaluation(release)["losses"]
    total = max(losses["positives"], 1)
    rows: list[tuple[str, ...]] = [
        (text, f"{losses[name]:,}", f"{losses[name] / total:.1%}") for name, text in LOSSES.items()
    ]
    return ("held-out positives", "count", "share"), rows


def calibration(release: Release) -> dict[str, dict[str, float]]:
    """How well the probabilities of the ranker that serves came true on held-out rows, by action; empty where it has
    none: `rate` is how often the action happened, `calibration_error` how far what is predicted is from what happened.
    """
    figures = release.manifest.details.get("rankers", {}).get(release.manifest.ranker, {}).get("figures", {})
    found: dict[str, dict[str, float]] = {}
    for name, value in figures.items():
        action, held_out, figure = name.rpartition(".held_out_")
        if held_out and figure in CALIBRATION:
            found.setdefault(action, {})[figure] = value
    return found


def calibration_rows(release: Release) -> Rows:
    """One row per action: how often it happened on held-out rows, and how far the predicted probabilities were off."""
    rows: list[tuple[str, ...]] = [
        (action, *(f"{kept[figure]:.4f}" for figure in CALIBRATION)) for action, kept in calibration(release).items()
    ]
    return ("probability of", "rate", "calibration error", "log loss"), rows


def with_interval(measured: Mapping[str, float | None]) -> str:
    """`0.123±.006`: the value and half of its 95 % interval."""
    value, low, high = measured["value"], measured["low"], measured["high"]
    if value is None or low is None or high is None:
        return "-"
    return f"{value:.3f}±{(high - low) / 2:.3f}".replace("±0.", "±.")


def plain(value: float | None) -> str:
    """A figure, or a dash where nothing was measured."""
    return "-" if value is None else f"{value:.3f}"


def share(value: float | None) -> str:
    """A share in percent."""
    return "-" if value is None else f"{value:.1%}"
