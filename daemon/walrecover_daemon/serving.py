"""`serve`: a keeper in a thread, the guardian in others, and the page in this one.

Owns the socket, and how they begin and end together.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import msgspec
import uvicorn

from walrecover.errors import BadInput
from walrecover_daemon import guarding
from walrecover_daemon.asking import Asking
from walrecover_daemon.connections import Connection
from walrecover_daemon.guardfile import Guarded
from walrecover_daemon.guardian import Guardian
from walrecover_daemon.keeper import Keeper
from walrecover_daemon.ledgers import Ledgers
from walrecover_daemon.live import Hub
from walrecover_daemon.notifying import Notifier
from walrecover_daemon.sending import Webhook
from walrecover_daemon.site import Site
from walrecover_daemon.worker import Job, Progress


class Address(NamedTuple):
    """`insecure`: anybody who reaches it may read."""

    host: str
    port: int
    token: str | None = None
    insecure: bool = False


def check(address: Address) -> None:
    """Raises BadInput for what would be open to others unasked."""
    if not guarding.is_loopback(address.host) and address.token is None and not address.insecure:
        raise BadInput(
            f"{address.host} can be reached from other machines: give --token-file, or --insecure "
            f"if everybody may read"
        )


def bind(address: Address) -> socket.socket:
    """Raises BadInput where the address cannot be had."""
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((address.host, address.port))
        bound.listen(128)  # before the address is printed: whoever comes early waits
    except OSError as error:
        bound.close()
        raise BadInput(
            f"{address.host}:{address.port} cannot be served ({error.strerror or error}): give "
            f"another --port, 0 for any"
        ) from None
    return bound


def url_of(bound: socket.socket) -> str:
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


class Guard(NamedTuple):
    """What is guarded: the file, as it was given and as it was read, and who is told."""

    file: Guarded = Guarded()
    text: str = ""
    webhook: Webhook | None = None


class Serving:
    """`stop` may be called from any thread."""

    def __init__(
        self,
        job: Job,
        address: Address,
        say: Callable[[str], None],
        guard: Guard = Guard(),  # noqa: B008
    ) -> None:
        self._hub, self._notifier = Hub(), Notifier()
        job = msgspec.structs.replace(job, beat=self._notifier.beat)
        self._keeper = Keeper(
            job, say, self._changed, self._progress, beat=self._notifier.goes_round
        )
        self._guardian = Guardian(job, *guard, self._keeper.heard, say, self._hub.changed)
        self._code: int | None = None
        self._said = ""
        asking = Asking(Path(job.readmodel))
        self._ledgers = Ledgers(job.journal, lambda run: self._hub.changed(frozenset({run})))
        site = Site(asking, self._hub, self._keeper.heard, self._alive, self._ledgers)
        any_host = not guarding.is_loopback(address.host) or address.token is not None
        self._server = uvicorn.Server(
            uvicorn.Config(
                site.app(address.token, any_host=any_host),
                log_level="error",  # what is no request is nobody's news
                headers=list(guarding.HEADERS),
                http=Connection,
                access_log=False,
                server_header=False,
                ws="none",
                lifespan="on",
                limit_concurrency=256,
                timeout_keep_alive=5,
                timeout_graceful_shutdown=2,
                h11_max_incomplete_event_size=16 * 1024,
            )
        )

    def run(self, bound: socket.socket) -> int:
        """Until stopped, or until the follower can go on no more. Returns an exit code."""
        thread = threading.Thread(target=self._keep, name="walrecover-keeper")
        self._guardian.start()
        thread.start()
        try:
            self._server.run(sockets=[bound])
        finally:
            self.stop()
            self._ledgers.close()
            self._guardian.join()
            thread.join()
        return 1 if self._code is None else self._code

    def stop(self) -> None:
        self._notifier.stopping()
        self._server.should_exit = True
        self._hub.close()
        self._guardian.stop()
        self._keeper.stop()

    def _keep(self) -> None:
        try:
            self._code = self._keeper.run()
        finally:
            self._server.should_exit = True
            self._hub.close()

    def _alive(self) -> bool:
        return self._code is None

    def _changed(self, runs: frozenset[int]) -> None:
        self._hub.changed(runs)
        self._guardian.stirred()

    def _progress(self, progress: Progress) -> None:
        if progress.waiting:
            said = f"reading: {progress.events} events, {_runs(progress.waiting)} to go"
        else:
            said = f"{_runs(progress.runs)} followed"
        if not self._said:
            self._notifier.ready()
        if said != self._said:
            self._hub.told(said)
            self._notifier.status(said)
        self._said = said


def _runs(count: int) -> str:
    return "1 run" if count == 1 else f"{count} runs"
