"""What the numbers recommend, in words.

A difference is claimed only where its 95 % interval, paired by user, lies on one side of zero.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from shortlist.training.comparing.tradeoffs import CANDIDATES, Contribution, Method, TradeOffs
from shortlist.training.evaluation import TWO_STAGE
from shortlist.training.metrics import Interval

RETRIEVAL, RANKING = "recall@100", "ndcg@10"
FEWEST = 10
"""Fewer users than this are not compared: intervals of so few are too narrow."""
EVERYTHING = 0.98
SMALL = "The catalogue is so small that a hundred candidates hold nearly all that was wanted: one source is enough."
TITLES = {RETRIEVAL: "Recall@100", RANKING: "NDCG@10"}


def recommendations(weighed: TradeOffs, deadline_ms: float) -> list[str]:
    """Which source, which ranker, whether two stages are worth it, what each source adds, and whether it is in time."""
    sources = measured(weighed, RETRIEVAL, "source")
    if not weighed.requests or not sources:
        return [
            "Nothing could be measured: the held-out slice has no positive that could be shown. Collect more events."
        ]
    if weighed.users < FEWEST:
        return [f"Only {weighed.users} users have held-out positives: too few to compare methods. Collect more events."]
    small = all(method.value(RETRIEVAL) >= EVERYTHING for method in sources)
    metric = RANKING if small and measured(weighed, RANKING, "source") else RETRIEVAL
    found = preference(weighed, metric, measured(weighed, metric, "source"))
    said = [f"To retrieve with one source: {found}"]
    rankers = measured(weighed, RANKING, "ranker")
    if rankers:
        said.append(f"To rank: {preference(weighed, RANKING, rankers)}")
    said += two_stages(weighed)
    said += [SMALL] if small else sources_added(weighed.contributions)
    said += latency(weighed, deadline_ms)
    return said


def measured(weighed: TradeOffs, metric: str, role: str) -> list[Method]:
    """The methods of a role that have a figure, those first that are easiest to follow, then the smallest."""
    held = weighed.values.get(metric, {})
    found = [
        method
        for method in weighed.methods
        if method.role == role and method.name in held and math.isfinite(method.value(metric))
    ]
    return sorted(found, key=lambda method: (effort(method), method.bytes))


def effort(method: Method) -> int:
    """How much it takes to follow why."""
    return method.reason.effort if method.reason is not None else 0


def preference(weighed: TradeOffs, metric: str, methods: Sequence[Method]) -> str:
    """The simplest method that no other beats beyond chance; `methods` come simplest first.

    Where that is the best one, the best of the simpler ones is named beside it, as what would be easier to debug.
    """
    title = TITLES[metric]
    best = max(methods, key=lambda method: method.value(metric))
    enough = next(
        method for method in methods if method is best or not weighed.difference(metric, best.name, method.name).low > 0
    )
    if enough is not best:
        gap = weighed.difference(metric, best.name, enough.name)
        easier = f"easier to debug: it shows {why(enough)}" if effort(enough) < effort(best) else "smaller"
        return (
            f"{spoken(enough)}. {spoken(best).capitalize()} has {title} {best.value(metric):.3f} against "
            f"{enough.value(metric):.3f}, but that may be chance (difference {told(gap)}), and {spoken(enough)} is "
            f"{easier}."
        )
    simpler = [method for method in methods if effort(method) < effort(best)]
    if not simpler:
        return f"{spoken(best)}: no other has better {title} ({best.value(metric):.3f}), and none is easier to debug."
    other = max(simpler, key=lambda method: method.value(metric))
    return (
        f"{spoken(best)} for better {title} ({best.value(metric):.3f} against {other.value(metric):.3f}, difference "
        f"{told(weighed.difference(metric, best.name, other.name))}), but {spoken(other)} would be easier to debug: it "
        f"shows {why(other)}."
    )


def two_stages(weighed: TradeOffs) -> Iterator[str]:
    """Whether what serves is better than the best source alone."""
    sources, held = measured(weighed, RANKING, "source"), weighed.values.get(RANKING, {})
    if not sources or TWO_STAGE not in held:
        return
    best = max(sources, key=lambda method: method.value(RANKING))
    gap = weighed.difference(RANKING, TWO_STAGE, best.name)
    beside = f"{spoken(best)} alone (NDCG@10 {best.value(RANKING):.3f}, difference {told(gap)})"
    if gap.low > 0:
        yield f"Two stages are worth it: better than {beside}."
    elif gap.high < 0:
        yield f"Two stages are not worth it: worse than {beside}."
    else:
        yield f"Two stages are no better and no worse than {beside}, as far as {weighed.users:,} users can tell."


def sources_added(contributions: Sequence[Contribution]) -> Iterator[str]:
    """What each source adds."""
    yield from map(contribution, contributions)
    if sum(not part.is_useful for part in contributions) > 1:
        yield "Drop one source at a time: what none of them finds alone, several may find."


def contribution(part: Contribution) -> str:
    """What a source adds to the merged list: at the depth where it adds most for certain, or nothing."""
    depth, gain = max(part.adds.items(), key=lambda item: item[1].low)
    adds = "adds to the others" if part.is_useful else "adds nothing that can be told from chance"
    return (
        f"{spoken_name(part.source).capitalize()} {adds}: it alone found {part.alone:.1%} of the held-out positives, "
        f"and {depth} of the merged list gains {told(gain)} by it."
    )


def latency(weighed: TradeOffs, deadline_ms: float) -> Iterator[str]:
    """Whether the whole is in time, and what takes longest."""
    whole = next(method for method in weighed.methods if method.role == "pipeline")
    timed = [method for method in weighed.methods if method.role != "pipeline" and math.isfinite(method.latency_ms)]
    if not timed or not math.isfinite(whole.latency_ms):
        return
    slowest = max(timed, key=lambda method: method.latency_ms)
    share = whole.latency_ms / deadline_ms
    verdict = (
        f"{share:.0%} of the deadline of {deadline_ms:g} ms"
        if share < 1
        else f"over the deadline of {deadline_ms:g} ms"
    )
    yield (
        f"An answer takes {whole.latency_ms:.2f} ms in this process, {verdict}; of the parts {spoken(slowest)} takes "
        f"longest, {slowest.latency_ms:.2f} ms for {CANDIDATES} candidates."
    )


def spoken(method: Method) -> str:
    """A method's name in a sentence."""
    return spoken_name(method.name)


def spoken_name(name: str) -> str:
    """A name in a sentence."""
    return name.replace("_", " ")


def why(method: Method) -> str:
    """What a method shows of why."""
    return method.reason.words if method.reason is not None else "nothing"


def told(gap: Interval) -> str:
    """A difference with its interval."""
    return f"{gap.value:+.3f}, 95 % interval {gap.low:+.3f} to {gap.high:+.3f}"
