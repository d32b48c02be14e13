"""The command line of the daemon.

Data goes to stdout, everything else to stderr. Exit codes: 0; 1 the read model cannot be kept;
2 bad input.
"""

from __future__ import annotations

import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from walrecover import __version__
from walrecover.errors import BadInput, WalrecoverError
from walrecover_daemon import finding, readmodel
from walrecover_daemon.keeper import Keeper
from walrecover_daemon.worker import Job

if TYPE_CHECKING:
    from walrecover_daemon import serving

_directories = click.argument("directories", metavar="[DIR]...", nargs=-1)
_journal_dir = click.option(
    "--journal-dir",
    metavar="DIR",
    envvar="WALRECOVER_JOURNAL_DIR",
    help="Where journals lie, if not in the run directory: node-local storage.",
)
_read_model = click.option(
    "--read-model",
    metavar="FILE",
    help="Where the read model lies [default: daemon/read-model.db in the first DIR].",
)


class _Time(click.ParamType[float]):
    name = "TIME"

    def convert(
        self, value: str, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        found = re.fullmatch(r"(\d{1,9}(?:\.\d+)?)(s|m|h)", value, re.ASCII)
        if found is None:
            self.fail(f"{value!r}: give a number and its unit, such as 90s, 30m or 8h", param, ctx)
        return float(found[1]) * {"s": 1, "m": 60, "h": 3600}[found[2]]


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="walrecover-daemon")
def group() -> None:
    """Follow the journals of training runs. DIR is a .walrecover directory, or one that holds it
    [default: WALRECOVER_DIR, else ./.walrecover]."""


@group.command("serve", help="Follow the runs below DIR, until stopped.")
@_directories
@_journal_dir
@_read_model
@click.option("--once", is_flag=True, help="Follow what is there, and end; no page.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Where the page is served.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8765,
    show_default=True,
    help="Its port; 0 for any.",
)
@click.option("--token-file", metavar="FILE", help="What readers of the page must know.")
@click.option("--for", "seconds", type=_Time(), help="End by itself after so long: 30m.")
@click.option("--insecure", is_flag=True, help="Serve any address without a token.")
@click.option(
    "--guard",
    metavar="FILE",
    help="What is guarded, and who is told [default: snapshots are read back daily].",
)
def serve(
    directories: tuple[str, ...],
    journal_dir: str | None,
    read_model: str | None,
    once: bool,
    host: str,
    port: int,
    token_file: str | None,
    seconds: float | None,
    insecure: bool,
    guard: str | None,
) -> int:
    path, job = _job(directories, journal_dir, read_model, once=once)
    if once and guard:
        raise BadInput("--guard is for a daemon that goes on: leave out --once")
    if once:
        with readmodel.locked(path):
            return _keep(job)
    from walrecover_daemon import guarding, serving  # half a second, and only here

    token = guarding.read_token(token_file) if token_file else None
    address = serving.Address(host, port, token, insecure)
    serving.check(address)
    guarded = _guard(guard) if guard else serving.Guard()
    with readmodel.locked(path), serving.bind(address) as bound:
        if insecure and token is None:
            _say("--insecure: everybody who reaches the page may read all of these runs")
        sys.stdout.write(f"{serving.url_of(bound)}\n")
        sys.stdout.flush()
        site = serving.Serving(job, address, _say, guarded)
        with _stopped_by_signals(site.stop, seconds):
            return site.run(bound)


@group.command("rebuild", help="Make the read model anew from the journals below DIR.")
@_directories
@_journal_dir
@_read_model
def rebuild(directories: tuple[str, ...], journal_dir: str | None, read_model: str | None) -> int:
    path, job = _job(directories, journal_dir, read_model, once=True)
    with readmodel.locked(path):
        readmodel.check_is_ours(path)
        readmodel.remove(path)
        return _keep(job)


def _guard(path: str) -> serving.Guard:
    from walrecover_daemon import guardfile, sending, serving

    try:
        text = Path(path).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"--guard {path} cannot be read: {error}") from None
    found = guardfile.parse(text.encode(), path)
    url, token = found.alerts.url_file, found.alerts.token_file
    return serving.Guard(found, text, sending.read_webhook(url, token) if url else None)


def _job(
    directories: tuple[str, ...], journal_dir: str | None, read_model: str | None, *, once: bool
) -> tuple[Path, Job]:
    roots = finding.roots(directories)
    path = Path(read_model).absolute() if read_model else roots[0] / "daemon" / "read-model.db"
    journal = str(Path(journal_dir).absolute()) if journal_dir else None
    return path, Job(str(path), "", [str(root) for root in roots], journal, once=once)


def _keep(job: Job) -> int:
    keeper = Keeper(job, _say)
    with _stopped_by_signals(keeper.stop):
        code = keeper.run()
    if code == 0 and job.once:
        found = keeper.heard.progress
        sys.stdout.write(msgspec.json.encode({"runs": found.runs, "events": found.events}).decode())
        sys.stdout.write("\n")
    return code


@contextmanager
def _stopped_by_signals(stop: Callable[[], None], seconds: float | None = None) -> Iterator[None]:
    """SIGTERM and SIGINT end the follower in order, or the end of its time: not in the handler,
    which may have interrupted anything."""
    asked = threading.Event()

    def hear(*_: object) -> None:
        asked.set()

    def await_it() -> None:
        asked.wait(seconds)
        stop()

    before = {number: signal.signal(number, hear) for number in (signal.SIGTERM, signal.SIGINT)}
    threading.Thread(target=await_it, daemon=True).start()
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _say(text: str) -> None:
    print(f"walrecover-daemon: {text}", file=sys.stderr, flush=True)


def main(argv: list[str] | None = None) -> None:
    """The entry point of the `walrecover-daemon` command."""
    code: Any
    try:
        code = group.main(
            sys.argv[1:] if argv is None else argv,
            prog_name="walrecover-daemon",
            standalone_mode=False,
        )
    except click.exceptions.Abort:
        code = 130
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except WalrecoverError as error:
        _say(str(error))
        code = error.exit_code
    except OSError as error:
        _say(f"{error.strerror or error}: {error.filename}" if error.filename else str(error))
        code = 1
    sys.exit(code if isinstance(code, int) else 0)
