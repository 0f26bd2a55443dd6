"""Which settings are best? Trials within a budget, kept in SQLite so that a run that was stopped goes on.

Each source and ranker is tuned by itself, in turns, by Optuna's tree-structured Parzen estimator (Bergstra et al.,
NIPS 2011), the others staying as they are declared. Trials see the log before the test slice only. When every part has
had its trials, the best settings together are trained and held against the declared ones on the test slice: once, and
what came of it is kept. A run is of one log position: it goes on as of that position though the log has grown.
"""

from __future__ import annotations

import hashlib
import math
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from shortlist.durable import take_lock
from shortlist.events.log import EventLog
from shortlist.project import Project
from shortlist.training.backtest import Progress
from shortlist.training.comparing.spaces import is_literal, space_of, written
from shortlist.training.comparing.trials import Bed, Part, parts_of, quietly, with_specs
from shortlist.training.dataset import Ground, TrainingError, survey
from shortlist.training.evaluation import TWO_STAGE
from shortlist.training.metrics import Floats, Interval, intervals
from shortlist.training.rankers.fitting import NothingToLearnError
from shortlist.training.train import CERTAIN, Learned, Steps, learn

if TYPE_CHECKING:
    from optuna import Study
    from optuna.storages import BaseStorage
    from optuna.trial import FrozenTrial

METRIC = "ndcg@10"
DECLARED, TEST = "declared", "test"
LOCK = "tuning.lock"


@dataclass(frozen=True)
class Budget:
    """So many trials of each part, those of earlier runs included; no trial begins after `seconds`."""

    trials: int
    seconds: float


@dataclass(frozen=True)
class Best:
    """What the trials of one part came to. `declared` and `best` are values of `metric` on the choosing slice.

    `settings` are the best ones that differ from the declaration: none where it is not beaten with 95 % confidence,
    one-sided and paired by user, because the best of many trials is partly the luckiest. `problem` says why there was
    nothing to try.
    """

    part: str
    metric: str
    trials: int
    declared: float | None
    best: float | None
    settings: Mapping[str, Any]
    line: str
    problem: str = ""


@dataclass(frozen=True)
class Comparison:
    """NDCG@10 of the two stages on the test slice: as declared, with the best settings, and the difference by user."""

    declared: Interval
    tuned: Interval
    difference: Interval


@dataclass(frozen=True)
class Tuned:
    """What a run came to. `comparison` is None until all trials are done, and where nothing better was found.

    `looks` counts how often the test slice was used, this time included; `note` says what was resumed.
    """

    log_position: int
    parts: tuple[Best, ...]
    is_finished: bool
    comparison: Comparison | None
    looks: int
    note: str

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        compared = self.comparison
        held = None if compared is None else {name: value.to_dict() for name, value in vars(compared).items()}
        return {**asdict(self), "comparison": held}


def tune(
    project: Project,
    log: EventLog,
    database: Path,
    budget: Budget,
    seed: int,
    progress: Progress,
    names: Sequence[str] = (),
    anew: bool = False,
) -> Tuned:
    """Try settings of the parts called `names` (all that can be tuned, by default) within the budget.

    `database` keeps the trials. `anew` forgets what was tried at another position of the log. Raises TrainingError
    where nothing can be tuned, another run is at it, or Optuna is not installed.
    """
    wanted = wanted_of(project, names)
    with storage_at(database) as storage, tempfile.TemporaryDirectory(prefix="shortlist-tune-") as place:
        digest = digest_of(project, seed)
        position, note = position_of(storage, digest, log.position, anew)
        ground = survey(project, log, seed, progress, position)
        bed = Bed(ground, Path(place))
        trials = [Trials(storage, f"{position}-{digest}", part) for part in parts_of(bed, wanted)]
        is_finished = spend(trials, budget, progress)
        best = tuple(each.best() for each in trials)
        chosen = {
            found.part: each.spec_with(found.settings)
            for each, found in zip(trials, best, strict=True)
            if found.settings
        }
        comparison, looks = None, 0
        if is_finished and chosen:
            comparison, looks = compare(storage, f"{position}-{digest}", ground, chosen, Path(place), progress)
        return Tuned(position, best, is_finished, comparison, looks, note)


def wanted_of(project: Project, names: Sequence[str]) -> frozenset[str]:
    """The names of the parts to tune: all that can be, or those given. Raises TrainingError for one that cannot."""
    known = [spec.name for spec in (*project.sources, *project.rankers) if space_of(spec)]
    wrong = [name for name in names if name not in known]
    if wrong or not known:
        found = f"{wrong[0]!r} cannot be tuned" if wrong else "nothing can be tuned"
        raise TrainingError(
            f"{found}; of this project's sources and rankers these can be: {', '.join(known) or 'none'}"
        )
    return frozenset(names or known)


def digest_of(project: Project, seed: int) -> str:
    """What trials must agree on to be compared: features, labels, declarations, what is tried, and the seed."""
    labels = project.labels
    said = [project.feature_set().fingerprint, str(seed), type(labels).__name__]
    said += [f"{event.kind} {gain}" for event, gain in labels.gains.items()]
    said += [repr(getattr(labels, name, None)) for name in ("where", "within")]
    for spec in (*project.sources, *project.rankers):
        values = {field.name: getattr(spec, field.name) for field in fields(spec)}
        plain = {name: value if is_literal(value) else value.name for name, value in values.items()}
        said.append(f"{type(spec).__name__} {plain!r} {space_of(spec)!r}")
    return hashlib.sha256("\n".join(said).encode()).hexdigest()[:12]


def position_of(storage: BaseStorage, digest: str, stop: int, anew: bool) -> tuple[int, str]:
    """The log position to work at: that of the newest run of the same kind, else the log's end; and what to say."""
    import optuna

    runs = [name.partition("/")[0] for name in optuna.get_all_study_names(storage)]
    positions = [int(run.partition("-")[0]) for run in runs if run.partition("-")[2] == digest]
    known = max((position for position in positions if position <= stop), default=None)
    if known is None:
        return stop, "" if not runs else "began anew: the declarations, what can be tuned, or the seed has changed"
    if known == stop:
        return stop, "goes on with the trials that there are"
    if anew:
        return stop, f"began anew: the log has grown from {known:,} to {stop:,} events"
    return known, f"goes on as of event {known:,}, though the log has {stop:,} by now; --anew begins again at its end"


@contextmanager
def storage_at(database: Path) -> Iterator[BaseStorage]:
    """Optuna's store in an SQLite file, for one run at a time: trials that are running count as stopped ones'.

    Raises TrainingError where Optuna is not installed, or another run is there.
    """
    try:
        import optuna
        from optuna.storages import RDBStorage
    except ModuleNotFoundError as error:
        raise TrainingError(f"{error.name} is not installed; run: pip install 'shortlist[tuning]'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    database.parent.mkdir(parents=True, exist_ok=True)
    lock = take_lock(database.with_name(LOCK))
    if lock is None:
        raise TrainingError(f"another run tunes this project and keeps its trials in {database}; wait for it")
    try:
        storage = RDBStorage(f"sqlite:///{database}")
        try:
            yield storage
        finally:
            storage.remove_session()
            storage.engine.dispose()
    finally:
        os.close(lock)


def spend(trials: Sequence[Trials], budget: Budget, progress: Progress) -> bool:
    """Try the parts in turn until each has had its trials, or the time is up; whether all have."""
    until = time.monotonic() + budget.seconds
    while True:
        open_ = [each for each in trials if each.wants_more(budget.trials)]
        if not open_:
            return True
        for each in open_:
            if time.monotonic() >= until:
                return False
            each.step()
            progress(f"tune {each.spec.name}", min(1.0, each.count / budget.trials))


class Trials:
    """The trials of one part, those of earlier runs included."""

    def __init__(self, storage: BaseStorage, run: str, part: Part) -> None:
        import optuna

        self.part, self.spec, self.space = part, part.spec, space_of(part.spec)
        self.study: Study = optuna.create_study(
            storage=storage, study_name=f"{run}/{part.spec.name}", direction="maximize", load_if_exists=True
        )
        running = self.study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,))
        for trial in running:  # whoever ran them was stopped
            self.study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
        seed = int.from_bytes(hashlib.sha256(f"{run} {len(self.study.trials)}".encode()).digest()[:4])
        self.study.sampler = optuna.samplers.TPESampler(seed=seed)
        self.problem = ""

    @property
    def count(self) -> int:
        """How many settings were tried; those that could not be fitted count."""
        return sum(trial.state.name in ("COMPLETE", "PRUNED") for trial in self.study.get_trials(deepcopy=False))

    def wants_more(self, wanted: int) -> bool:
        """Whether another trial is to be made."""
        return not self.problem and (self.count < wanted or DECLARED not in self.study.user_attrs)

    def step(self) -> None:
        """Judge the declared settings, if that was not done; else try some others."""
        import optuna

        if DECLARED not in self.study.user_attrs:
            try:
                self.study.set_user_attr(DECLARED, self.part.judge(self.spec).tolist())
            except NothingToLearnError as error:
                self.problem = str(error)
            return
        trial = self.study.ask()
        settings = {name: values.drawn(trial, name) for name, values in self.space.items()}
        known = self._known(trial.params)
        try:
            values = self.part.judge(self.spec_with(settings)).tolist() if known is None else known
        except NothingToLearnError:
            self.study.tell(trial, state=optuna.trial.TrialState.PRUNED)
            return
        trial.set_user_attr("settings", settings)
        trial.set_user_attr("values", values)
        self.study.tell(trial, float(np.mean(values)))

    def spec_with(self, settings: Mapping[str, Any]) -> Any:
        """The declaration with other settings. Those that SQLite gave back as lists are tuples again."""
        return replace(self.spec, **{name: tuple(v) if isinstance(v, list) else v for name, v in settings.items()})

    def best(self) -> Best:
        """The best settings so far; the declared ones where no other is better."""
        name, metric = self.spec.name, self.part.metric
        if DECLARED not in self.study.user_attrs:
            return Best(name, metric, self.count, None, None, {}, "", self.problem)
        declared = np.array(self.study.user_attrs[DECLARED])
        tried = [(np.array(trial.user_attrs["values"]), trial) for trial in self._complete()]
        values, top = max(tried, key=lambda pair: float(pair[0].mean()), default=(declared, None))
        value, best = float(declared.mean()), max(float(declared.mean()), float(values.mean()))
        if top is None or not is_better(values, declared):
            return Best(name, metric, self.count, value, best, {}, "")
        spec = self.spec_with(top.user_attrs["settings"])
        settings = {name: getattr(spec, name) for name in self.space if getattr(spec, name) != getattr(self.spec, name)}
        return Best(name, metric, self.count, value, best, settings, written(self.spec, settings))

    def _complete(self) -> list[FrozenTrial]:
        return [trial for trial in self.study.get_trials(deepcopy=False) if trial.state.name == "COMPLETE"]

    def _known(self, params: Mapping[str, Any]) -> list[float] | None:
        """The values of the same settings, where they were tried before."""
        return next((trial.user_attrs["values"] for trial in self._complete() if trial.params == params), None)


def is_better(values: Floats, others: Floats) -> bool:
    """Whether users' values are greater than others of the same users, beyond chance."""
    gap = values - others
    return len(gap) > 1 and bool(gap.mean() > CERTAIN * gap.std(ddof=1) / math.sqrt(len(gap)))


def compare(
    storage: BaseStorage, run: str, ground: Ground, chosen: dict[str, Any], place: Path, progress: Progress
) -> tuple[Comparison, int]:
    """Train as declared and with the chosen settings, and hold them against each other on the test slice.

    What was compared before is read, not measured again. Also returns how often the slice was used so far.
    """
    import optuna

    study = optuna.create_study(storage=storage, study_name=f"{run}/{TEST}", load_if_exists=True)
    name = hashlib.sha256(repr(sorted(chosen.items())).encode()).hexdigest()[:12]
    held = study.user_attrs.get(name)
    if held is None:
        progress("compare on the test slice", 0.0)
        learned, seed = [], ground.lesson.seed
        for number, specs in enumerate(({}, chosen)):
            folder = place / f"compared-{number}"
            folder.mkdir()
            learned.append(learn(with_specs(ground, specs), folder, quietly, Steps()))
            progress("compare on the test slice", (number + 1) / 2)
        held = {name: value.to_dict() for name, value in vars(difference(learned[0], learned[1], seed)).items()}
        study.set_user_attr(name, held)
    read = {part: Interval(*map(number_of, values.values())) for part, values in held.items()}
    return Comparison(**read), len(study.user_attrs)


def difference(declared: Learned, tuned: Learned, seed: int) -> Comparison:
    """The two stages of both, paired by user. Raises TrainingError where nothing could be measured."""
    details = [learned.evaluation.serving.detail for learned in (declared, tuned)]
    values = [detail.per_user[METRIC][TWO_STAGE] for detail in details if detail is not None]
    if len(values) < 2:
        raise TrainingError("the test slice has no positive that could be shown; collect more events and tune again")
    found = intervals({"declared": values[0], "tuned": values[1]}, "declared", seed)
    return Comparison(found["declared"][0], found["tuned"][0], found["tuned"][1])


def number_of(value: float | None) -> float:
    """A figure that went through JSON."""
    return float("nan") if value is None else value
