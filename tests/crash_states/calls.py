"""Reads strace's text into whole calls.

Owns: the syntax of `strace -f -y -xx -o`: lines per process, unfinished and resumed halves,
escapes, arguments. It must not know what a call means.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

AT_FDCWD = -100

_PUNCTUATION = re.compile(r"[,\[\](){}]")
_END = re.compile(r"\)\s+= (-?\d+|0x[0-9a-f]+|\?)([^=]*)$")
_RESUMED = re.compile(r"<\.\.\. \w+ resumed>")
_IOVEC = re.compile(r'iov_base="([^"]*)"(\.\.\.)?, iov_len=')
_UNFINISHED = "<unfinished ...>"


class TraceError(Exception):
    """The recording cannot be understood, or the program did something that strace cannot show."""


@dataclass(frozen=True, slots=True)
class Call:
    """One system call that returned. `begun` and `seq` are line numbers, of its start and end."""

    pid: int
    name: str
    args: tuple[str, ...]
    result: int
    error: str
    begun: int
    seq: int

    @property
    def ok(self) -> bool:
        return not self.error

    def flags(self, index: int) -> frozenset[str]:
        return frozenset(self.args[index].split("|")) if index < len(self.args) else frozenset()

    def number(self, index: int) -> int:
        return int(self.args[index], 0)

    def fd(self, index: int) -> int:
        text = self.args[index]
        return AT_FDCWD if text.startswith("AT_FDCWD") else int(text.split("<", 1)[0])

    def fd_path(self, index: int) -> str | None:
        """The path that the kernel names for a descriptor; None if it has none or was deleted."""
        _, opening, rest = self.args[index].partition("<")
        path, _, deleted = rest.partition(">")
        return unescape(path).decode(errors="surrogateescape") if opening and not deleted else None

    def data(self, index: int) -> bytes:
        text = self.args[index]
        if text.endswith("..."):
            raise TraceError(f"{self.name} of more bytes than strace was told to show")
        return unescape(text.strip('"'))

    def path(self, index: int) -> str:
        return self.data(index).decode(errors="surrogateescape")

    def vectors(self, index: int) -> bytes:
        pieces = []
        for match in _IOVEC.finditer(self.args[index]):
            if match[2]:
                raise TraceError(f"{self.name} of more bytes than strace was told to show")
            pieces.append(unescape(match[1]))
        if len(pieces) != self.number(index + 1):
            raise TraceError(f"{self.name}: {len(pieces)} of {self.number(index + 1)} vectors seen")
        return b"".join(pieces)


def unescape(text: str) -> bytes:
    return bytes.fromhex(text.replace("\\x", " "))


def read_calls(lines: Iterable[str]) -> Iterator[Call]:
    """Calls by the line on which they returned; what never returned is left out."""
    halves: dict[str, tuple[int, str]] = {}
    for number, line in enumerate(lines):
        pid, _, text = line.rstrip("\n").partition(" ")
        text = text.lstrip()
        if text.startswith(("+++", "---")) or not pid.isdigit():
            continue
        begun = number
        if resumed := _RESUMED.match(text):
            if pid not in halves:
                raise TraceError(f"line {number + 1}: resumes a call that never began")
            begun, first = halves.pop(pid)
            text = first + text[resumed.end() :]
        if text.endswith(_UNFINISHED):
            halves[pid] = (begun, text[: -len(_UNFINISHED)].rstrip())
            continue
        if call := _whole_call(int(pid), text, begun, number):
            yield call


def _whole_call(pid: int, text: str, begun: int, seq: int) -> Call | None:
    end = _END.search(text)
    name, opening, _ = text[:64].partition("(")
    if not end or not opening:
        raise TraceError(f"line {seq + 1} is not a call: {text[:80]}")
    if end[1] == "?":
        return None
    result = int(end[1], 0)
    error = end[2].split()[0] if result < 0 and end[2].split() else ""
    args = tuple(_split(text[len(name) + 1 : end.start()]))
    return Call(pid, name, args, result, error, begun, seq)


def _split(text: str) -> Iterator[str]:
    """Arguments at the outermost commas. With -xx no string holds punctuation of its own."""
    depth = start = 0
    for match in _PUNCTUATION.finditer(text):
        sign = match[0]
        if sign in "[({":
            depth += 1
        elif sign in "])}":
            depth -= 1
        elif depth == 0:
            yield text[start : match.start()].strip()
            start = match.end()
    if text[start:].strip():
        yield text[start:].strip()
