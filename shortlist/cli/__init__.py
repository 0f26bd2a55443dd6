"""How is it called? The command line: one command per verb, everything heavy imported by the command that needs it.

Exit codes: 0 done, 1 a check failed or the work could not be done, 2 wrong use, 130 interrupted.
"""

from __future__ import annotations

import os
import sys

import click

from shortlist import __version__
from shortlist.cli import answering, comparing, data, learning, starting
from shortlist.cli.console import is_ours, say_problems
from shortlist.framing.problems import ProjectError
from shortlist.giving_way import let_threads_sleep


class InOrder(click.Group):
    """A group that lists its commands in the order in which they are met."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """The names as they were added."""
        return list(self.commands)


@click.group(cls=InOrder, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="shortlist")
def commands() -> None:
    """Millions of items into the ten that matter to one person.

    New here? `shortlist demo` shows everything once; `shortlist init DIR` makes a project of your own.
    """


for command in (*starting.COMMANDS, *data.COMMANDS, *learning.COMMANDS, *comparing.COMMANDS, *answering.COMMANDS):
    commands.add_command(command)


def main(arguments: list[str] | None = None) -> int:
    """Run one command; what goes wrong is said on standard error without a traceback."""
    let_threads_sleep()
    try:
        outcome = commands.main(arguments, prog_name="shortlist", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        return 130
    except ProjectError as error:
        say_problems(error.problems)
        return 1
    except BrokenPipeError:  # the reader of our output has seen enough; leave nothing that Python could flush
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if not is_ours(error):
            raise
        click.echo(f"error: {error}", err=True)
        return 1
    return outcome if isinstance(outcome, int) else 0
