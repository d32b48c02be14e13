"""A webhook's receiver, as a real server: it keeps what it is sent, and answers as it is told."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any

SECRET = "s3cr3t-path"


class Receiver:
    """`answers`: the statuses of the next answers, then 200. `silent`: it takes what it is sent,
    and answers nothing until it is let go; `drips`: it answers a byte at a time, for ever."""

    def __init__(self, *answers: int, silent: bool = False, drips: bool = False) -> None:
        self.got: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.answers, self.silent = list(answers), silent
        self.let_go = threading.Event()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                length = int(self.headers["Content-Length"])
                receiver.got.append(json.loads(self.rfile.read(length)))
                receiver.headers.append({"path": self.path, **dict(self.headers)})
                while drips and not receiver.let_go.wait(0.02):
                    self.wfile.write(b"H")
                if receiver.silent or drips:
                    receiver.let_go.wait(60)
                    self.close_connection = True
                    return
                self.send_response(receiver.answers.pop(0) if receiver.answers else 200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/{SECRET}"

    def __enter__(self) -> Receiver:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.let_go.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def kinds(self) -> list[tuple[str, str, str]]:
        """What it was told, in order: about which run, what, and whether it is over."""
        return [(one["run"], one["kind"], one["state"]) for one in list(self.got)]


def guard_file(folder: Path, url: str = "", text: str = "") -> Path:
    """A file for `--guard` with this webhook."""
    folder.mkdir(parents=True, exist_ok=True)
    alerts = ""
    if url:
        (folder / "webhook").write_text(f"{url}\n")
        alerts = f"alerts: {{url_file: {folder / 'webhook'}}}\n"
    path = folder / "guard.yaml"
    path.write_text(alerts + text)
    return path
