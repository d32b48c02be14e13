"""The status page as an application: paths to answers.

Owns the routes. What an answer says is `pages`', who may ask `guarding`'s; nothing is read but the
read model, the package's own static files, and the stacks of hangs by `stacks`.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib.resources import files

import msgspec
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from walrecover.entries import is_run_name
from walrecover_daemon import curves, guardparts, metrics, pages, stacks
from walrecover_daemon.asking import Asking
from walrecover_daemon.guarding import Guard
from walrecover_daemon.keeper import Heard
from walrecover_daemon.ledgers import Ledgers
from walrecover_daemon.live import Hub

MOST_RUNS = 500
"""So many are in the table of all runs; each has its page, whatever the table holds."""

STATIC = {
    "htmx.min.js": "text/javascript",
    "uplot.min.js": "text/javascript",
    "uplot.min.css": "text/css",
    "page.js": "text/javascript",
    "page.css": "text/css",
    "icon.svg": "image/svg+xml",
}


class Site:
    """`alive`: whether the follower is."""

    def __init__(
        self, asking: Asking, hub: Hub, heard: Heard, alive: Callable[[], bool], ledgers: Ledgers
    ) -> None:
        self._asking, self._hub, self._heard, self._alive = asking, hub, heard, alive
        self._ledgers = ledgers
        folder = files("walrecover_daemon") / "static"
        self._static = {name: (folder / name).read_bytes() for name in STATIC}

    def app(self, token: str | None, *, any_host: bool) -> Starlette:
        app = Starlette(
            routes=[
                Route("/", self.overview),
                Route("/part/runs", self.runs),
                Route("/part/alerts", self.alerts),
                Route("/runs/{name}", self.run),
                Route("/runs/{name}/curve.json", self.curve),
                Route("/runs/{name}/part/{part}", self.part),
                Route("/live", self.live),
                Route("/metrics", self.metrics),
                Route("/livez", self.livez),
                Route("/readyz", self.readyz),
                Route("/static/{name}", self.static),
            ],
            middleware=[Middleware(Guard, token=token, any_host=any_host)],
            exception_handlers={404: _not_found, 500: _failed},
            lifespan=self._lifespan,
        )
        app.router.redirect_slashes = False  # an address that is none leads nowhere
        return app

    @asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        self._hub.begin()
        yield
        self._hub.close()

    # --- pages ----------------------------------------------------------------------------------

    def overview(self, request: Request) -> Response:
        shown, count = self._asking.runs(MOST_RUNS), self._asking.count()
        alerts = self._asking.alerts()
        return HTMLResponse(pages.overview(shown, count, alerts, time.time()))

    def alerts(self, request: Request) -> Response:
        return HTMLResponse(guardparts.alerts(self._asking.alerts(), time.time()))

    def runs(self, request: Request) -> Response:
        shown, count = self._asking.runs(MOST_RUNS), self._asking.count()
        return HTMLResponse(pages.table_of_runs(shown, count, time.time()))

    def run(self, request: Request) -> Response:
        found = self._about(request)
        return _not_found(request) if found is None else HTMLResponse(pages.about(found))

    def part(self, request: Request) -> Response:
        known = pages.PARTS.get(request.path_params["part"])
        found = self._about(request) if known else None
        if known is None or found is None:
            return _not_found(request)
        return HTMLResponse(known[1](found))

    def curve(self, request: Request) -> Response:
        run, _ = self._chosen(request)
        if run is None:
            return _not_found(request)
        body = msgspec.json.encode(curves.curve(self._asking.parts(run["id"])))
        return Response(body, media_type="application/json")

    def _chosen(self, request: Request) -> tuple[pages.Row | None, list[pages.Row]]:
        name, number = request.path_params["name"], request.query_params.get("id", "")
        if not is_run_name(name):
            return None, []
        given = number.isascii() and number.isdigit() and len(number) < 16
        return self._asking.run(name, int(number) if given else None)

    def _about(self, request: Request) -> pages.About | None:
        run, same = self._chosen(request)
        if run is None:
            return None
        asking, number = self._asking, run["id"]
        attempts = asking.attempts(number)
        wanted = request.path_params.get("part", "stacks") == "stacks"
        return pages.About(
            run,
            attempts,
            asking.recoveries(number),
            asking.snapshots(number),
            asking.events(number),
            asking.problems(number),
            same,
            self._ledgers.of(run),
            stacks.of_run(run["root"], run["name"], attempts) if wanted else (),
            time.time(),
            asking.alerts((run["root"], run["name"])),
            asking.upkeep((run["root"], run["name"])),
        )

    # --- the rest -------------------------------------------------------------------------------

    async def live(self, request: Request) -> Response:
        if self._hub.is_full():
            return PlainTextResponse("too many listen already\n", 503)
        return StreamingResponse(self._hub.listen(), media_type="text/event-stream")

    async def metrics(self, request: Request) -> Response:
        body = await run_in_threadpool(metrics.exposition, self._asking, self._heard)
        return Response(body, media_type="text/plain; version=0.0.4; charset=utf-8")

    async def livez(self, request: Request) -> Response:
        alive = self._alive()
        return PlainTextResponse(
            "alive\n" if alive else "the follower has ended\n", 200 if alive else 503
        )

    async def readyz(self, request: Request) -> Response:
        ready = self._alive() and self._heard.caught_up
        waiting = self._heard.progress.waiting
        return PlainTextResponse(
            "ready\n" if ready else f"{waiting} runs to read\n", 200 if ready else 503
        )

    async def static(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in self._static:
            return _not_found(request)
        return Response(self._static[name], media_type=STATIC[name])


def _not_found(request: Request, error: Exception | None = None) -> Response:
    return PlainTextResponse("there is no such page\n", 404)


def _failed(request: Request, error: Exception) -> Response:
    return PlainTextResponse("this page cannot be made now: the daemon's log says why\n", 500)
