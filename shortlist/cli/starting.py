"""The first commands: see it work, make a project, check it."""

from __future__ import annotations

from pathlib import Path

import click

from shortlist.cli.console import open_workplace, print_json, say, say_problems, takes_json, takes_project
from shortlist.framing.problems import ProjectError


@click.command()
@click.option(
    "--data", type=click.Path(exists=True, path_type=Path), help="The folder or zip of any MovieLens release."
)
@click.option(
    "--dir",
    "folder",
    type=click.Path(path_type=Path),
    default=Path(".shortlist/demo"),
    show_default=True,
    help="Where the demo works; replaced when it is an earlier demo's.",
)
@click.option("--port", type=click.IntRange(0, 65_535), default=8000, show_default=True, help="0 takes a free one.")
@click.option("--once", is_flag=True, help="Stop after one answer over HTTP.")
@takes_json
def demo(data: Path | None, folder: Path, port: int, once: bool, as_json: bool) -> int:
    """See the whole of it once: from events to ten films.

    Without --data it fetches MovieLens latest-small from its publisher, or simulates users when there is no internet.
    """
    from shortlist.demo import run

    return run(data, folder, port, once or as_json, as_json)


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
def init(folder: Path) -> int:
    """Make a project to start from, with a tiny catalogue."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise click.UsageError(f"{folder} exists and is not empty; name a new folder")
    from shortlist.starter import make

    count = make(folder)
    say(f"{folder}: a project with {count} events in its log. Read {folder / 'project.py'}, then:")
    say(f"    cd {folder}\n    shortlist validate\n    shortlist train\n    shortlist serve")
    return 0


@click.command()
@takes_project
@takes_json
def validate(path: Path, as_json: bool) -> int:
    """Check the project; every mistake at once, with its line."""
    from shortlist.validation import of_files

    try:
        workplace = open_workplace(path)
        if missing := of_files(workplace.project):
            raise ProjectError(missing)
    except ProjectError as error:
        if as_json:
            print_json({"ok": False, "problems": [vars(problem) for problem in error.problems]})
        else:
            say_problems(error.problems)
        return 1
    project, features = workplace.project, workplace.features()
    counts = {
        "entities": len(project.all_entities),
        "event_types": len(project.events),
        "features": len(project.features),
        "sources": len(project.sources),
        "rankers": len(project.rankers),
    }
    if as_json:
        print_json({"ok": True, "project": project.name, **counts, "fingerprint": features.fingerprint})
    else:
        described = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in counts.items())
        click.echo(f"{click.style('ok', fg='green')}: {project.name} has {described}")
    return 0


COMMANDS = (demo, init, validate)
