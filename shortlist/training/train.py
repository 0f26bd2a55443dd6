"""From a log to a release: split, fit, choose, test, publish.

    the log's positives, in log order
    |------------------- train 80 % -------------------|---- test 20 % ----|
    |------ sources 60 % ------|- rankers 14 % -|- 6 % -|
                                                 choose

Rankers learn on requests behind what their sources were fitted on, so that they see the sources as serving will: wrong
about the future; without impressions, on the newest positives that each user had before that, too, which the sources
then go without (see `Ground.early`). The ensemble serves where one is declared; or else the simplest ranker that no
other beats for certain on the slice behind that and on some users' newest positives. Then the sources are fitted on all
of the training part, and everything is measured on the test part, once. What is published are the same sources fitted
on the whole log, because the newest events say most about tomorrow; where one fails there, those that were measured.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from shortlist.events.labels import Labels
from shortlist.events.log import EventLog
from shortlist.features.table import FeatureTable
from shortlist.project import Project
from shortlist.ranking.scoring import RankerStage, load_scorer
from shortlist.ranking.specs import BoostedTrees, DeepCross, Ensemble, LogisticRegression, RankerSpec
from shortlist.retrieval.specs import Popular
from shortlist.training.backtest import Past, Progress
from shortlist.training.dataset import (
    FittedSources,
    Ground,
    RankerRows,
    TrainingError,
    fit_sources,
    pipeline_of,
    ranker_rows,
    survey,
)
from shortlist.training.evaluation import (
    DEPTHS,
    MERGED,
    MOST_REQUESTS,
    PER_USER,
    POPULARITY,
    TWO_STAGE,
    Contest,
    Evaluation,
    evaluate,
)
from shortlist.training.judging import ShownSlates, looks
from shortlist.training.metrics import Floats, by_user, ndcg, ordered_gains
from shortlist.training.rankers.fitting import FittedRanker, NothingToLearnError, fit_ranker
from shortlist.training.releases import Manifest, Registry, Release
from shortlist.training.reordering import reorder
from shortlist.training.requests import requests_of
from shortlist.training.rows import unheard, worth

FOUND = f"recall@{DEPTHS[-1]}"
EARLY = "early"
"""Where the sources live that are fitted on the first part only; not published."""
WHOLE = "whole"
"""Where the sources are fitted on everything, beside those that were measured."""
DEPTH = 10
SIMPLEST = (LogisticRegression, BoostedTrees, DeepCross)
"""Kinds of rankers, the one first whose orders are the easiest to explain."""
CERTAIN = 1.645
"""Standard errors that a difference must exceed to be believed: 95 %, one-sided."""

__all__ = ["TrainingError", "train"]


@dataclass
class Steps:
    """Seconds of each step, as they pass."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Time a step."""
        begun = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - begun, 3)


@dataclass(frozen=True)
class Choice:
    """The rankers that were fitted, their NDCG@10 on the slice that chooses, and the one that was chosen ("": none).

    `seconds` is how long each took to fit, an ensemble with its members.
    """

    fitted: Mapping[str, FittedRanker]
    validation: Mapping[str, float]
    ranker: str
    findings: tuple[str, ...]
    seconds: Mapping[str, float]


@dataclass(frozen=True)
class Learned:
    """All that one training learned into `directory` and measured, before anybody decides what serves.

    `past` is where the evaluation left it: the table knows everything before the last held-out request.
    """

    directory: Path
    ground: Ground
    rows: RankerRows
    sources: FittedSources
    choice: Choice
    evaluation: Evaluation
    past: Past


@dataclass(frozen=True)
class Verdict:
    """What serves, and why: the sources, the ranker ("" = the sources' order), what was measured, what was found."""

    sources: tuple[str, ...]
    ranker: str
    evaluation: Evaluation
    findings: tuple[str, ...]


def train(
    project: Project,
    log: EventLog,
    registry: Registry | str | Path,
    seed: int = 0,
    progress: Progress = lambda step, share: None,  # noqa: ARG005
    force: bool = False,
) -> Release:
    """Train on the log as it is now, measure on its last fifth, and publish a release.

    A ranker that turns out worse than popularity on the held-out slice is not served: the release then serves popular
    items and says so, unless `force`d, which is recorded. The same log, seed and machine give the same release.
    Raises TrainingError where there is nothing to train on, ReleaseError where the disk refuses.
    """
    home = registry if isinstance(registry, Registry) else Registry(registry, project.objective.guardrails)
    steps = Steps()
    with steps.step("read the log"):
        ground = survey(project, log, seed, progress)
    with home.draft() as draft:
        learned = learn(ground, draft, progress, steps)
        sources, choice = learned.sources, learned.choice
        verdict = judge(ground, sources, choice, learned.evaluation.serving, force)
        if verdict.sources == sources.names:
            with steps.step("fit sources on everything"):
                sources, failed = fit_on_everything(ground, sources, draft, progress)
            verdict = replace(verdict, findings=(*verdict.findings, *failed))
        with steps.step("publish"):
            manifest = describe(ground, learned.rows, sources, choice, verdict)
            fits = {name: round(seconds, 3) for name, seconds in (*sources.seconds.items(), *choice.seconds.items())}
            return home.publish(draft, manifest, {"seconds": steps.seconds, "fit_seconds": fits})


def learn(ground: Ground, directory: Path, progress: Progress, steps: Steps) -> Learned:
    """Fit every source and ranker into `directory`, and measure them on the held-out slice."""
    past = Past(ground.lesson.log, FeatureTable(ground.lesson.features))
    early = directory / EARLY
    early.mkdir()
    with steps.step("fit sources on the first part"):
        sources = fit_sources(ground, ground.early(), early, progress)
    with steps.step("make the rankers' rows"):
        rows = ranker_rows(ground, sources, past, progress)
    with steps.step("fit rankers"):
        choice = fit_rankers(ground, rows, directory, progress)
    with steps.step("fit sources"):
        first, sources = sources, fit_sources(ground, ground.before(ground.split.cut), directory, progress, sources)
    refuse_lost(first, sources)
    with steps.step("evaluate"):
        evaluation = measure(ground, rows, sources, choice, directory, past, progress)
    shutil.rmtree(early)
    return Learned(directory, ground, rows, sources, choice, evaluation, past)


def refuse_lost(first: FittedSources, sources: FittedSources) -> None:
    """Raise TrainingError where a source could be fitted before, on less: rankers have learned from what it says."""
    lost = [name for name in first.names if name not in sources.names]
    if lost:
        why = "; ".join(finding for finding in sources.findings if any(f"source {name} " in finding for name in lost))
        raise TrainingError(
            f"{why}; it could be fitted on the first part of the log, and rankers have learned from it: "
            "mend what came later, or take the source out of the project"
        )


def fit_on_everything(
    ground: Ground, measured: FittedSources, directory: Path, progress: Progress
) -> tuple[FittedSources, tuple[str, ...]]:
    """Put sources that are fitted on the whole log in the place of those that were `measured`; and what failed.

    Where one of them cannot be fitted any more, all stay as they were measured: without its candidates and columns
    something would serve that nobody has measured.
    """
    whole = directory / WHOLE
    whole.mkdir()
    anew = fit_sources(ground, ground.before(ground.split.stop), whole, progress, measured)
    failed: tuple[str, ...] = ()
    if set(measured.names) <= set(anew.names):
        measured = replace(anew, directory=directory)
        shutil.rmtree(directory / "sources", ignore_errors=True)
        if (whole / "sources").exists():  # popular items store nothing
            (whole / "sources").rename(directory / "sources")
    else:
        kept = "so all sources serve as they were measured, fitted on what was before the held-out slice"
        failed = tuple(f"fitted on the whole log, {finding}; {kept}" for finding in anew.findings)
    shutil.rmtree(whole)
    return measured, failed


def fit_rankers(ground: Ground, rows: RankerRows, directory: Path, progress: Progress) -> Choice:
    """Fit every ranker, the linear baseline always; the best of the project's own on the choosing rows is chosen.

    Where an ensemble is declared there is no contest: a slice that members were stopped on would pick one by luck.
    """
    declared = sorted((*ground.project.rankers, LogisticRegression()), key=lambda spec: isinstance(spec, Ensemble))
    specs: dict[str, RankerSpec] = {spec.name: spec for spec in declared}  # ensembles last: they are made of the others
    own = [spec.name for spec in ground.project.rankers]
    fitted: dict[str, FittedRanker] = {}
    validation: dict[str, Floats] = {}
    findings = []
    seconds: dict[str, float] = {}
    for name, spec in specs.items():

        def report(done: int, total: int, step: str = f"fit {name}") -> None:
            progress(step, done / max(total, 1))

        place, begun = directory / "rankers" / name, time.perf_counter()
        try:
            fitted[name] = fit_ranker(spec, rows.learning, rows.choosing, place, ground.lesson.seed, report)
        except NothingToLearnError as error:
            shutil.rmtree(place, ignore_errors=True)
            findings.append(f"ranker {name} was left out: {error}")
            continue
        seconds[name] = time.perf_counter() - begun + (sum(seconds.values()) if isinstance(spec, Ensemble) else 0.0)
        validation[name] = validation_ndcg(place, rows)
    best = next((name for name in fitted if isinstance(specs[name], Ensemble)), "") or chosen(
        {name: validation[name] for name in simplest_first(own, specs) if name in fitted}
    )
    means = {name: float(values.mean()) if len(values) else math.nan for name, values in validation.items()}
    return Choice(fitted, means, best, tuple(findings), seconds)


def simplest_first(names: Iterable[str], specs: Mapping[str, RankerSpec]) -> list[str]:
    """Rankers in the order of `SIMPLEST`; ensembles, which are no kind of their own, are not among them."""
    kinds = {name: [isinstance(specs[name], kind) for kind in SIMPLEST] for name in names}
    return sorted((name for name in kinds if True in kinds[name]), key=lambda name: kinds[name].index(True))


def chosen(validation: Mapping[str, Floats]) -> str:
    """The first ranker that the best one does not beat with 95 % confidence, one-sided; "" where there is none.

    Differences are paired by user: `validation` holds each ranker's figure of every user, simplest ranker first. A
    more complex one has to prove itself, the more so as its training has stopped where this very slice liked it best.
    """
    if not validation:
        return ""
    best = max(validation.values(), key=lambda values: values.mean() if len(values) else 0.0)
    for name, values in validation.items():
        behind = best - values
        error = behind.std(ddof=1) / math.sqrt(len(behind)) if len(behind) > 1 else 0.0
        if not len(behind) or behind.mean() <= CERTAIN * error:
            return name
    raise AssertionError("the best ranker is not worse than itself")


def validation_ndcg(directory: Path, rows: RankerRows) -> Floats:
    """NDCG@10 of a fitted ranker on the choosing rows, one value per user of whom they tell something.

    Of slates that were shown it is what `judging` says.
    """
    data = rows.choosing
    if not data.mixed:
        return np.empty(0)
    scores = load_scorer(directory).score(data.matrix, data.names)
    starts = np.cumsum(data.sizes) - data.sizes
    users, user = np.unique(rows.users[starts], return_inverse=True)
    if data.rank is not None and data.actions:
        counted = worth(data.actions, data.blend) * looks(rows.places, data.rank)
        per_user = ShownSlates(data.sizes, user, counted).values(scores, DEPTH)
    else:
        gains, relevant = ordered_gains(data.sizes, data.gain, scores, DEPTH)
        per_user = by_user(ndcg(gains, relevant, DEPTH)[:, None], user, len(users))[:, 0]
    return per_user[~np.isnan(per_user)]


def measure(
    ground: Ground,
    rows: RankerRows,
    sources: FittedSources,
    choice: Choice,
    directory: Path,
    past: Past,
    progress: Progress,
) -> Evaluation:
    """Measure every method on the held-out slice."""
    lesson, split = ground.lesson, ground.split
    requests = requests_of(lesson.positives.between(split.cut, split.stop), PER_USER, MOST_REQUESTS)
    pipeline, resort = pipeline_of(ground, sources, past.table)
    popular = (source for source in pipeline.sources if source.name == baseline_name(ground))
    scorers = {name: load_scorer(directory / "rankers" / name) for name in choice.fitted}
    stages = {name: RankerStage(name, scorer) for name, scorer in scorers.items()}
    contest = Contest(pipeline, stages, choice.ranker, next(popular, resort))
    item = ground.project.item.name
    evaluation = evaluate(contest, past, item, lesson.known.users.ids, requests, lesson.seed, progress)
    return evaluation.judged_on(*reorder(ground, rows.places, sources, scorers, choice.ranker))


def baseline_name(ground: Ground) -> str:
    """The name of the source that is the popularity baseline: the project's own, or the one that is always there."""
    return next((spec.name for spec in ground.sources if isinstance(spec, Popular)), Popular().name)


def judge(ground: Ground, sources: FittedSources, choice: Choice, evaluation: Evaluation, force: bool) -> Verdict:
    """Let the chosen ranker serve unless popularity alone was better, or nothing could be measured.

    Slates that were shown do not tell what sources would have missed, so these must not surely find less.
    """
    findings = [*unheard(ground.project), *sources.findings, *choice.findings]
    popular = Verdict((baseline_name(ground),), "", evaluation.with_popularity(), ())
    trained = Verdict(sources.names, choice.ranker, evaluation, ())
    served, baseline = (evaluation.ndcg(method) for method in (TWO_STAGE, POPULARITY))
    if not math.isfinite(served):
        reason = "nothing could be measured on the held-out slice: it has no positive that could be shown"
    elif served < baseline:
        reason = (
            f"NDCG@10 of what was trained is {served:.4f} on the held-out slice, {baseline:.4f} of popularity alone"
        )
    elif evaluation.shown and evaluation.found_more[FOUND].high < 0:
        found, popularly = (evaluation.retrieval[name][FOUND].value for name in (MERGED, POPULARITY))
        reason = f"of what was wanted on the held-out slice sources find {found:.1%}, popularity alone {popularly:.1%}"
    else:
        return replace(trained, findings=tuple(findings))
    if force:
        return replace(trained, findings=(*findings, f"{reason}; it serves all the same, by force"))
    return replace(popular, findings=(*findings, f"{reason}; popular items are served"))


def describe(ground: Ground, rows: RankerRows, sources: FittedSources, choice: Choice, verdict: Verdict) -> Manifest:
    """The manifest: everything but times, which would differ from run to run."""
    lesson, project = ground.lesson, ground.project
    details = {
        "evaluation": verdict.evaluation.to_dict(),
        "findings": list(verdict.findings),
        "chosen": {"ranker": choice.ranker, "validation_ndcg@10": dict(choice.validation)},
        "sources": {name: dict(figures) for name, figures in sources.figures.items()},
        "rankers": {name: asdict(fitted) for name, fitted in choice.fitted.items()},
        "split": asdict(ground.split),
        "data": {
            "events": lesson.stop,
            "users": len(lesson.known.users),
            "items": len(lesson.known.items),
            "positives": len(lesson.positives),
            "negatives": "shown and not acted on" if isinstance(project.labels, Labels) else "drawn",
            "ranker_requests": len(rows.learning.sizes) + len(rows.choosing.sizes),
            "ranker_rows": len(rows.learning.gain) + len(rows.choosing.gain),
            "ranker_rows_left_out": rows.left_out,
            "impressions_unclosed": rows.unclosed,
            "contexts_unreadable": rows.unreadable,
        },
        "declared": {
            "user": project.user.name,
            "item": project.item.name,
            "events": [event.kind for event in project.events],
        },
    }
    return Manifest(
        project=project.name,
        seed=lesson.seed,
        log_position=lesson.stop,
        fingerprint=lesson.features.fingerprint,
        ranker=verdict.ranker,
        rankers=tuple(choice.fitted),
        sources=verdict.sources,
        columns=lesson.features.columns,
        metrics=verdict.evaluation.metrics(baseline_name(ground)),
        details=plain(details),
    )


def plain(value: Any) -> Any:
    """JSON of the same: numbers that are not finite become null."""
    if isinstance(value, Mapping):
        return {str(name): plain(held) for name, held in value.items()}
    if isinstance(value, list | tuple):
        return [plain(held) for held in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value
