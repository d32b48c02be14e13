"""A connection that costs nothing when its other end does not go on.

Owns how long a client may be silent; must not know what is asked or answered.
"""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol

PATIENCE_SECONDS = 10.0
"""For a whole request, however it trickles in, and for an answer that is not taken on."""

_LOOK_SECONDS = 1.0


class Connection(H11Protocol):
    _since = 0.0
    _left = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._moved()
        self._look_again()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._moved()

    def _moved(self) -> None:
        self._since = self.loop.time()

    def _look_again(self) -> None:
        self.loop.call_later(_LOOK_SECONDS, self._look)

    def _look(self) -> None:
        if self.transport.is_closing():
            return
        left = self.transport.get_write_buffer_size()
        at_work = self.cycle is not None and not self.cycle.response_complete
        if left != self._left or (at_work and not left):
            self._moved()
        elif self.loop.time() - self._since > PATIENCE_SECONDS:
            self.transport.abort()
            return
        self._left = left
        self._look_again()

    def send_400_response(self, msg: str) -> None:
        """With the headers of every other answer, though no application was asked."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.transport.abort()  # it would be read as part of another answer
            return
        headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"connection", b"close")]
        head = b"".join(
            b"%s: %s\r\n" % pair for pair in [*self.server_state.default_headers, *headers]
        )
        self.transport.write(b"HTTP/1.1 400 Bad Request\r\n%s\r\n%s\n" % (head, msg.encode()))
        self.transport.close()
