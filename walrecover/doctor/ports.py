"""Whether the port that a command's ranks meet at can be bound here, and who holds it.

Owns the sockets, each closed at once; which port it is says `findings.rendezvous`.
"""

from __future__ import annotations

import contextlib
import errno
import socket

from walrecover.findings.facts import Port
from walrecover.findings.rendezvous import Meeting

_LOCAL = frozenset({"", "localhost", "127.0.0.1", "::1", "0.0.0.0", "::"})


def look(meeting: Meeting, *, thorough: bool) -> Port | None:
    """None where it is another host's."""
    if not _is_here(meeting.host):
        return None
    taken = _refusal(meeting.port)
    holder = _holder(meeting.port) if taken and thorough else ""
    return Port(meeting.port, meeting.source, meeting.surely, taken, holder)


def _is_here(host: str) -> bool:
    """Whether this host has that address. Other names are not looked up: that may take long."""
    if host in _LOCAL or host == socket.gethostname():
        return True
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.inet_pton(family, host)
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.bind((host, 0))
    except OSError:
        return False
    return True


def _refusal(number: int) -> str:
    """Why a server cannot bind this port on all addresses, as torch's store does."""
    for family in (socket.AF_INET6, socket.AF_INET):
        try:
            with socket.socket(family, socket.SOCK_STREAM) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
                probe.bind(("", number))
        except OverflowError:
            return "no port has this number"
        except OSError as error:
            if error.errno in (errno.EADDRINUSE, errno.EACCES):
                return error.strerror or str(error)
            continue  # this family is not to be had
        return ""
    return ""


def _holder(number: int) -> str:
    """The process that listens there, where it can be seen."""
    import psutil

    with contextlib.suppress(psutil.Error, OSError):
        for found in psutil.net_connections("tcp"):
            if found.status != psutil.CONN_LISTEN or not found.laddr or not found.pid:
                continue
            if found.laddr.port == number:
                return f"process {found.pid} ({psutil.Process(found.pid).name()})"
    return ""
