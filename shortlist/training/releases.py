"""Releases: everything that serving needs, in one directory, published and swapped whole.

A release is written into a draft beside its final place, every file is fsynced and hashed, and one rename publishes
it: after a crash there is either nothing or a whole release. The champion is a small file swapped by an atomic rename.
The version names the content: the position of the log and a hash of the manifest, which holds the hash of every file.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from shortlist.durable import flush, write_durably
from shortlist.framing.objective import Guardrail

FORMAT = 1
MANIFEST = "manifest.json"
CREATED = "created.json"  # when and how fast: differs from run to run, so it stays outside the hash
POINTER = "champion.json"
DRAFT = ".draft-"


class ReleaseError(Exception):
    """A release that cannot be published, promoted or trusted: says which file, what was found and what to do."""


@dataclass(frozen=True)
class Manifest:
    """What a release is made of. `files` maps each path inside the release to its SHA-256.

    `ranker` is the one of `rankers` that orders the slate. `metrics` are figures of the held-out slice: plain names
    ("ndcg@10") are those of what is served, "popularity.ndcg@10" those of a method; None was not measurable.
    `details` is whatever else the trainer recorded, as JSON.
    """

    project: str
    seed: int
    log_position: int
    fingerprint: str
    ranker: str
    rankers: tuple[str, ...]
    sources: tuple[str, ...]
    columns: tuple[str, ...]
    metrics: Mapping[str, float | None]
    details: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    format: int = FORMAT

    @property
    def version(self) -> str:
        """`<log position>-<first 12 hex digits of the hash of this manifest>`."""
        return f"{self.log_position}-{hashlib.sha256(_json(asdict(self))).hexdigest()[:12]}"


@dataclass(frozen=True)
class Release:
    """A verified release. `created` holds the time of its making (ms UTC) and the seconds of each step."""

    directory: Path
    manifest: Manifest
    created: Mapping[str, Any]

    @property
    def version(self) -> str:
        """The name under which it was published."""
        return self.directory.name

    def path(self, name: str) -> Path:
        """The file or folder `name` of this release. Raises ReleaseError where the manifest does not list it."""
        if not any(listed == name or listed.startswith(f"{name}/") for listed in self.manifest.files):
            raise ReleaseError(
                f"{self.directory}: the release has no {name!r}; "
                "train again with a project that declares it, or serve the project that it was trained for"
            )
        return self.directory / name


@dataclass(frozen=True)
class Promotion:
    """One change of the champion. `replaced` was champion before; `failed` are the checks that `force` overrode."""

    version: str
    reason: str
    at: int
    action: str
    replaced: str | None = None
    failed: tuple[str, ...] = ()


@dataclass(frozen=True)
class Pointer:
    """Who is champion, who was before, and every change so far."""

    champion: str | None = None
    previous: str | None = None
    history: tuple[Promotion, ...] = ()


class Registry:
    """The releases in one directory. Safe for several processes of one machine; `keep` is how many are kept.

    The champion and the previous one are always kept, however old.
    """

    def __init__(self, directory: str | Path, guardrails: Sequence[Guardrail] = (), keep: int = 5) -> None:
        self.directory = Path(directory)
        self.guardrails = tuple(guardrails)
        self.keep = keep

    def versions(self) -> list[str]:
        """Every published version, newest first."""
        if not self.directory.is_dir():
            return []
        found = [path for path in self.directory.iterdir() if (path / MANIFEST).is_file() and path.name[0] != "."]
        return [path.name for path in sorted(found, key=lambda path: (-_published_at(path), path.name))]

    def pointer(self) -> Pointer:
        """The champion pointer; cheap enough to be watched. Raises ReleaseError where the file is damaged."""
        path = self.directory / POINTER
        try:
            stored = json.loads(path.read_bytes())
            history = [Promotion(**{**entry, "failed": tuple(entry["failed"])}) for entry in stored["history"]]
            return Pointer(stored["champion"], stored["previous"], tuple(history))
        except FileNotFoundError:
            return Pointer()
        except (ValueError, KeyError, TypeError) as error:
            raise ReleaseError(
                f"{path}: not a champion pointer ({error}); delete it and promote one of: {', '.join(self.versions())}"
            ) from error

    def fetch(self, name: str = "champion", fingerprint: str | None = None) -> Release:
        """The release behind an alias (`champion`, `previous`, `latest`) or a version, every file verified.

        `fingerprint` is that of the features as they are declared now. Raises ReleaseError on any damage or mismatch.
        """
        directory = self.directory / self.resolve(name)
        manifest = read_manifest(directory)
        _verify(directory, manifest)
        if fingerprint is not None and manifest.fingerprint != fingerprint:
            raise ReleaseError(
                f"{directory / MANIFEST}: the release was trained with features {manifest.fingerprint[:12]}, the "
                f"project now declares {fingerprint[:12]}; train again, or go back to the project file of that time"
            )
        return Release(directory, manifest, _created(directory))

    def resolve(self, name: str) -> str:
        """The version behind an alias or a version. Raises ReleaseError where there is none."""
        pointer, versions = self.pointer(), self.versions()
        aliases = {
            "champion": pointer.champion,
            "previous": pointer.previous,
            "latest": versions[0] if versions else None,
        }
        version = aliases.get(name, name)
        if version is None:
            raise ReleaseError(
                f"{self.directory}: there is no {name} release; run `shortlist train` and `promote` first"
            )
        if version not in versions:
            known = ", ".join(versions) or "none"
            raise ReleaseError(f"{self.directory}: there is no release {version!r}; published: {known}")
        return version

    @contextmanager
    def draft(self) -> Iterator[Path]:
        """An empty directory in which to write the files of a release, for `publish`.

        It is removed when the block ends without a publish, or by the next draft where the process was killed.
        """
        with self._locked():
            self._clean()
            path = Path(tempfile.mkdtemp(prefix=DRAFT, dir=self.directory))
            lock = os.open(f"{path}.lock", os.O_CREAT | os.O_RDWR, 0o644)
            fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)
            Path(f"{path}.lock").unlink(missing_ok=True)
            os.close(lock)

    def publish(self, draft: Path, manifest: Manifest, created: Mapping[str, Any] | None = None) -> Release:
        """Make the files in `draft` a release, durable when this returns. The same content again changes nothing.

        `manifest.files` is filled in here. Raises ReleaseError when the disk refuses; nothing is published then.
        """
        try:
            complete = replace(manifest, files=_hash_and_flush(draft))
            target = self.directory / complete.version
            content = json.dumps(asdict(complete), indent=1, sort_keys=True, allow_nan=False)
            write_durably(draft / MANIFEST, content.encode())
            write_durably(draft / CREATED, json.dumps({"at": _now(), **(created or {})}, indent=1).encode())
            with self._locked():
                if not _intact(target):
                    if target.exists():
                        target.rename(draft.with_name(f"{draft.name}-damaged"))
                    draft.rename(target)
                    flush(self.directory)
                self._prune(complete.version)
        except OSError as error:
            raise ReleaseError(f"{self.directory}: could not publish ({error}); nothing was published") from error
        return self.fetch(complete.version)

    def failed_checks(self, manifest: Manifest) -> list[str]:
        """Why this release should not be champion: guardrails it breaks, and a quality below popularity's."""
        failed = [
            _broken(guardrail, manifest.metrics.get(guardrail.metric))
            for guardrail in self.guardrails
            if not guardrail.holds(_number(manifest.metrics.get(guardrail.metric)))
        ]
        served, baseline = manifest.metrics.get("ndcg@10"), manifest.metrics.get("popularity.ndcg@10")
        if served is not None and baseline is not None and served < baseline:
            failed.append(f"ndcg@10 is {served:.4f}, below {baseline:.4f} of popularity alone")
        return failed

    def promote(self, version: str, reason: str, force: bool = False) -> Pointer:
        """Make `version` (or an alias) the champion.

        Raises ReleaseError where a check fails; with `force` the failed checks are recorded instead.
        """
        release = self.fetch(version)
        failed = self.failed_checks(release.manifest)
        if failed and not force:
            raise ReleaseError(
                f"{release.directory}: not promoted: {'; '.join(failed)}; promote with force to do it all the same"
            )
        with self._locked():
            now = self.pointer()
            if now.champion == release.version:
                return now
            entry = Promotion(release.version, reason, _now(), "promote", now.champion, tuple(failed))
            return self._point(Pointer(release.version, now.champion, (*now.history, entry)))

    def rollback(self, reason: str) -> Pointer:
        """Make the previous champion the champion again; the one before it becomes the previous one."""
        target = self.fetch("previous")
        with self._locked():
            now = self.pointer()
            if now.previous != target.version:
                raise ReleaseError(f"{self.directory}: the champion changed meanwhile; look at it and roll back again")
            before = next(
                (e.replaced for e in reversed(now.history) if e.version == target.version and e.action == "promote"),
                None,
            )
            entry = Promotion(target.version, reason, _now(), "rollback", now.champion)
            previous = before if before in self.versions() else None
            return self._point(Pointer(target.version, previous, (*now.history, entry)))

    def _point(self, pointer: Pointer) -> Pointer:
        write_durably(self.directory / POINTER, json.dumps(asdict(pointer), indent=1).encode())
        return pointer

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self.directory.mkdir(parents=True, exist_ok=True)
        lock = os.open(self.directory / ".lock", os.O_CREAT | os.O_RDWR, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    def _clean(self) -> None:
        """Remove drafts whose writer is gone: a living one holds the lock of its draft."""
        for path in {found.with_suffix("") for found in self.directory.glob(f"{DRAFT}*")}:
            lock = os.open(f"{path}.lock", os.O_CREAT | os.O_RDWR, 0o644)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            else:
                shutil.rmtree(path, ignore_errors=True)
                Path(f"{path}.lock").unlink(missing_ok=True)
            finally:
                os.close(lock)

    def _prune(self, newest: str) -> None:
        pointer = self.pointer()
        wanted = {pointer.champion, pointer.previous, newest, *self.versions()[: self.keep]}
        for version in self.versions():
            if version not in wanted:
                aside = Path(tempfile.mkdtemp(prefix=DRAFT, dir=self.directory))
                (self.directory / version).rename(aside / version)  # gone at once, whatever happens while deleting
                shutil.rmtree(aside, ignore_errors=True)


def read_manifest(directory: Path) -> Manifest:
    """The manifest of the release in `directory`. Raises ReleaseError where it is missing, malformed or changed."""
    path = directory / MANIFEST
    try:
        stored = json.loads(path.read_bytes())
        known = {f.name for f in fields(Manifest)}
        if not isinstance(stored, dict) or stored.get("format") != FORMAT or set(stored) != known:
            raise ValueError(f"expected format {FORMAT} with {', '.join(sorted(known))}")
        lists = {name: tuple(stored[name]) for name in ("rankers", "sources", "columns")}
        manifest = Manifest(**{**stored, **lists})
        version = manifest.version
    except (OSError, ValueError, TypeError) as error:
        raise ReleaseError(f"{path}: unreadable manifest ({error}); {_REMEDY}") from error
    if version != directory.name:
        raise ReleaseError(
            f"{path}: the manifest was changed: its content is {version}, not {directory.name}; {_REMEDY}"
        )
    return manifest


_REMEDY = "roll back to the previous release or train again"


def _verify(directory: Path, manifest: Manifest) -> None:
    for name, expected in manifest.files.items():
        path = directory / name
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ReleaseError(f"{directory / MANIFEST}: names {name!r}, which lies outside the release; {_REMEDY}")
        if not path.is_file():
            raise ReleaseError(f"{path}: the file is missing; {_REMEDY}")
        found = _sha256(path)
        if found != expected:
            raise ReleaseError(
                f"{path}: damaged: its SHA-256 is {found[:12]}, the manifest says {expected[:12]}; {_REMEDY}"
            )


def _intact(directory: Path) -> bool:
    try:
        _verify(directory, read_manifest(directory))
    except ReleaseError:
        return False
    return True


def _broken(guardrail: Guardrail, value: float | None) -> str:
    bounds = [f"at least {guardrail.at_least:g}"] if guardrail.at_least is not None else []
    bounds += [f"at most {guardrail.at_most:g}"] if guardrail.at_most is not None else []
    found = "not measured" if value is None else f"{value:.4f}"
    return f"guardrail {guardrail.metric}: {found}, wanted {' and '.join(bounds)}"


def _number(value: float | None) -> float:
    return float("nan") if value is None else value


def _hash_and_flush(draft: Path) -> dict[str, str]:
    found = {}
    for path in sorted(draft.rglob("*")):
        if path.is_dir():
            flush(path)
        elif path.name not in (MANIFEST, CREATED) or path.parent != draft:
            found[path.relative_to(draft).as_posix()] = _sha256(path)
            flush(path)
    return found


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _json(value: Any) -> bytes:
    """One spelling per value: sorted names, no spaces, shortest floats."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _created(directory: Path) -> dict[str, Any]:
    try:
        stored = json.loads((directory / CREATED).read_bytes())
    except (OSError, ValueError):
        return {}  # outside the hash: its loss costs the date of making, never the release
    return stored if isinstance(stored, dict) else {}


def _published_at(directory: Path) -> float:
    at = _created(directory).get("at")
    return float(at) if isinstance(at, int | float) else directory.stat().st_mtime * 1000


def _now() -> int:
    return int(time.time() * 1000)
