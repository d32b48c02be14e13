"""Who may ask: tokens, host names, methods, lengths; and the headers of every answer.

Owns the middleware around all pages. Must not know what they show.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import ipaddress
from pathlib import Path

from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from walrecover.errors import BadInput

LONGEST_QUERY = 1024
MOST_HEADERS = 16 * 1024
SHORTEST_TOKEN = 16

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = (
    ("content-security-policy", POLICY),
    ("x-content-type-options", "nosniff"),
    ("referrer-policy", "no-referrer"),
    ("cross-origin-opener-policy", "same-origin"),
    ("cross-origin-resource-policy", "same-origin"),
    ("cache-control", "no-store"),
)
"""Of every answer: the server's own, to what is no request or one too many, among them."""


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def read_token(path: str) -> str:
    """Raises BadInput where it would not keep anybody out."""
    try:
        token = Path(path).read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"the token cannot be read: {error}") from None
    if len(token) < SHORTEST_TOKEN:
        raise BadInput(
            f"the token in {path} has {len(token)} characters, and {SHORTEST_TOKEN} are the least"
        )
    return token


class Guard:
    """`token` None: nobody needs one. `any_host` False: only loopback names are answered."""

    def __init__(self, app: ASGIApp, token: str | None, any_host: bool) -> None:
        self._app, self._token, self._any_host = app, token, any_host

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        await (self._refusal(scope) or self._app)(scope, receive, send)

    def _refusal(self, scope: Scope) -> PlainTextResponse | None:
        headers = dict(scope["headers"])
        if scope["http_version"] not in ("1.0", "1.1"):
            return PlainTextResponse("only HTTP/1.0 and HTTP/1.1 are spoken here\n", 505)
        if scope["method"] not in ("GET", "HEAD"):
            return PlainTextResponse("nothing here changes anything\n", 405, {"allow": "GET, HEAD"})
        if len(scope["query_string"]) > LONGEST_QUERY:
            return PlainTextResponse("the query is too long\n", 414)
        if sum(len(name) + len(value) + 4 for name, value in scope["headers"]) > MOST_HEADERS:
            return PlainTextResponse("the headers are too long\n", 431)
        if not self._any_host and not is_loopback(_name_of(headers.get(b"host", b""))):
            return PlainTextResponse("this is not the host that was asked for\n", 421)
        if self._token is not None and not self._is_known(headers.get(b"authorization", b"")):
            challenge = {"www-authenticate": 'Basic realm="walrecover", charset="UTF-8"'}
            return PlainTextResponse("a token is needed\n", 401, challenge)
        return None

    def _is_known(self, header: bytes) -> bool:
        kind, _, value = header.partition(b" ")
        if kind.lower() == b"basic":
            try:
                value = base64.b64decode(value, validate=True).partition(b":")[2]
            except (binascii.Error, ValueError):
                value = b""
        elif kind.lower() != b"bearer":
            value = b""
        assert self._token is not None
        return hmac.compare_digest(value.strip(), self._token.encode())


def _name_of(host: bytes) -> str:
    """The name or address of a Host header, without the port."""
    text = host.decode("latin-1").lower()
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.partition(":")[0]
