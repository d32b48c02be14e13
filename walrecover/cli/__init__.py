"""The command line. Each command lives in a module of its own name and is imported when used.

Data goes to stdout, everything else to stderr; with `--json` errors are JSON too. Exit codes are
DESIGN's: 0, 1 a verdict that is not good, 2 bad input, otherwise the child's own.
"""

from __future__ import annotations

import importlib
import logging
import sys
from typing import Any

import click

from walrecover import __version__
from walrecover.errors import WalrecoverError

COMMANDS = {
    "run": "Supervise a training command: restart and resume it.",
    "replay": "Fold the journal: the last consistent state, what was rejected and why.",
    "status": "The runs of a directory.",
    "show": "One run's recovery flow.",
    "log": "The events of a run.",
    "compare": "Where two runs' histories part, and in what.",
    "fork": "Another run from a kept snapshot.",
    "export": "A run as one portable file.",
    "import": "A run brought back from such a file, verified.",
    "prune": "Retire snapshots by rules.",
    "audit": "Which samples were consumed: every one exactly once, proved from the journal.",
    "verify": "Read back every digest of journal and snapshots.",
    "policy": "What follows a failure: the policy in force.",
    "doctor": "What is wrong with a place to train in, and what to do.",
    "rehearse": "Crash your own script and compare the bits.",
    "daemon": "Follow the journals of runs into a read model, and show it.",
    "diff": "What differs between two states: snapshots, files, the model in a script.",
}


_MODULES = {"import": "import_run"}
"""Of commands whose name no module can have."""


class _Lazy(click.Group):
    """A group whose commands are imported when they are used: `run` starts fast."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        name = _MODULES.get(cmd_name, cmd_name)
        module = importlib.import_module(f"walrecover.cli.{name}")
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="walrecover")
@click.option("-v", "--verbose", count=True, help="Say more on stderr; twice for debugging.")
@click.option("-q", "--quiet", is_flag=True, help="Say only errors on stderr.")
def group(verbose: int, quiet: bool) -> None:
    """The recovery journal for PyTorch training.

    \b
    walrecover run -- python train.py
    walrecover replay
    """
    levels = {0: logging.WARNING, 1: logging.INFO}
    level = logging.ERROR if quiet else levels.get(verbose, logging.DEBUG)
    logging.basicConfig(stream=sys.stderr, level=level, format="walrecover: %(message)s")


def main(argv: list[str] | None = None) -> None:
    """The entry point of the `walrecover` command."""
    arguments = sys.argv[1:] if argv is None else argv
    try:
        code = group.main(arguments, prog_name="walrecover", standalone_mode=False)
    except click.exceptions.Abort:
        code = 130
    except click.ClickException as error:
        code = _report(arguments, "BadInput", error.format_message(), error.exit_code, error)
    except WalrecoverError as error:
        code = _report(arguments, type(error).__name__, str(error), error.exit_code)
    except BrokenPipeError:
        code = 141
    except OSError as error:
        code = _report(arguments, "StorageFailed", _sentence(error), 1)
    sys.exit(code if isinstance(code, int) else 0)


def _sentence(error: OSError) -> str:
    where = f": {error.filename}" if error.filename else ""
    return f"{error.strerror or error}{where}"


def _report(arguments: list[str], kind: str, message: str, code: int, usage: Any = None) -> int:
    own = arguments[: arguments.index("--")] if "--" in arguments else arguments
    if "--json" in own:
        from walrecover.cli.output import write_json

        write_json({"error": {"type": kind, "message": message}})
    elif isinstance(usage, click.UsageError):
        usage.show()
    else:
        print(f"walrecover: {message}", file=sys.stderr)
    return code
