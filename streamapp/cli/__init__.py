"""The ``streamapp`` command: thin over the library, one file per group of commands.

The files of this package import only click at their top; what a command needs is imported when it runs, so
that ``streamapp --help`` does not wait for Faust, SQLAlchemy or torch.
"""

from __future__ import annotations

import logging
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import click

from streamapp.cli import dead, models, operate, service, tasks
from streamapp.errors import AppError, ConfigError, InvalidRequest, NotFound

#: Exit codes beside 0 and tasks.NO_PICTURE, as docs/operations.md lists them; 2 is click's own for wrong usage.
FAILED, USAGE, UNREACHABLE, MISCONFIGURED = 1, 2, 3, 78

EPILOG = """\b
Exit codes: 0 done, 1 failed or (doctor) something is missing, 2 wrong usage or a refused request,
3 the service does not answer or is full, 4 the task ended without a picture, 78 a bad setting.
Settings come from STREAMAPP_* variables and streamapp.toml: see `streamapp settings`."""


class Sentence(click.ClickException):
    """An error of ours as click shows it: one sentence on stderr and an exit code, never a traceback."""

    def __init__(self, error: AppError) -> None:
        super().__init__(error.message)
        match error:
            case ConfigError():
                self.exit_code = MISCONFIGURED
            case InvalidRequest() | NotFound():
                self.exit_code = USAGE
            case AppError(retryable=True):
                self.exit_code = UNREACHABLE
            case _:
                self.exit_code = FAILED


class Commands(click.Group):
    """The top group: turns what the library raises into a sentence."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the chosen command."""
        try:
            return super().invoke(ctx)
        except AppError as error:
            raise Sentence(error) from error

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """In the order in which a new user meets them."""
        return list(self.commands)


def _version(ctx: click.Context, _option: click.Parameter, asked: bool) -> None:
    if asked and not ctx.resilient_parsing:
        try:
            click.echo(f"streamapp {version('streamapp')} (Python {sys.version.split()[0]})")
        except PackageNotFoundError:
            click.echo("streamapp, not installed (run from a source tree)")
        ctx.exit()


@click.group(
    cls=Commands, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110}
)
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Say the version.")
def main() -> None:
    """Images from words, as one elastic service: run it, use it, look after it."""
    # What a driver logs about a failed connection is said by our own sentence; a role sets up real logging.
    if not logging.getLogger().handlers:
        logging.getLogger().addHandler(logging.NullHandler())


for command in (
    service.up,
    service.worker,
    service.web,
    tasks.submit,
    tasks.tasks,
    tasks.show,
    tasks.cancel,
    models.models,
    models.loras,
    models.controlnets,
    models.embeddings,
    operate.status,
    dead.dead,
    dead.replay,
    operate.topics,
    operate.db,
    operate.settings,
    operate.doctor,
):
    main.add_command(command)
