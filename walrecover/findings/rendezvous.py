"""Where the ranks of a command meet: which port it will bind, read from its words.

Owns what torchrun's options and variables mean for the port; opens nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

STATIC_PORT, C10D_PORT = 29500, 29400
MODULES = ("torch.distributed.run", "torch.distributed.launch")

FLAGS = frozenset({"standalone", "no-python", "run-path", "module", "m", "use-env"})
"""Options of torchrun that take no value."""


class Meeting(NamedTuple):
    """`surely`: this port is bound on `host`. Else it may be: torchrun for one node took its
    default port until newer releases took a free one."""

    host: str
    port: int
    source: str
    surely: bool = True


def meeting_of(argv: Sequence[str], environ: Mapping[str, str]) -> Meeting | None:
    """The port that the command binds, or None: it has none, picks a free one, or another host's
    rank binds it."""
    words = _torchrun_words(argv)
    if words is not None:
        return _of_torchrun(words, environ)
    port = environ.get("MASTER_PORT", "")
    if not port.isdigit() or environ.get("RANK", "0") != "0":
        return None
    return Meeting(environ.get("MASTER_ADDR", ""), int(port), "MASTER_PORT")


def _torchrun_words(argv: Sequence[str]) -> list[str] | None:
    """What follows torchrun, or None where the command is another."""
    for place, word in enumerate(argv):
        name = word.rpartition("/")[2]
        if name == "torchrun" or (word in MODULES and place and argv[place - 1] == "-m"):
            return list(argv[place + 1 :])
        if place and not word.startswith("-"):
            break  # what follows a script is the script's
    return None


def _of_torchrun(words: Sequence[str], environ: Mapping[str, str]) -> Meeting | None:
    given = _options(words)

    def value(name: str, default: str = "") -> str:
        return given.get(name) or environ.get(f"PET_{name.upper().replace('-', '_')}") or default

    if "standalone" in given or value("standalone") not in ("", "0", "false", "False"):
        return None
    if value("node-rank", "0") != "0":
        return None
    endpoint = value("rdzv-endpoint")
    if value("rdzv-backend", "static") != "static" or endpoint:
        host, port = _split(endpoint, C10D_PORT)
        hosts = value("rdzv-backend", "static") in ("static", "c10d")
        return Meeting(host, port, "--rdzv-endpoint") if hosts and port else None
    host, given_port = value("master-addr", "127.0.0.1"), value("master-port")
    if given_port.isdigit():
        return Meeting(host, int(given_port), "--master-port") if int(given_port) else None
    several = value("nnodes", "1").rpartition(":")[2] != "1"
    return Meeting(host, STATIC_PORT, "torchrun's default", surely=several)


def _options(words: Sequence[str]) -> dict[str, str]:
    """The options before the script, by their name with dashes."""
    found: dict[str, str] = {}
    place = 0
    while place < len(words) and words[place].startswith("-") and words[place] != "--":
        name, equals, text = words[place].lstrip("-").partition("=")
        name = name.replace("_", "-")
        place += 1
        if not equals and name not in FLAGS and place < len(words):
            text = words[place]
            place += 1
        found[name] = text
    return found


def _split(endpoint: str, default: int) -> tuple[str, int]:
    """Host and port; port 0 where a free one is taken, or where the text has none to read."""
    host, colon, port = endpoint.strip().rpartition(":")
    if not colon or endpoint.endswith("]"):
        return endpoint.strip("[]") or "localhost", default
    return host.strip("[]") or "localhost", int(port) if port.isdigit() else 0
