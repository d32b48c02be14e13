"""How things are said to people: signals, sizes, counts, long texts in one line,
secrets not at all.

Pure, and knows nothing of runs. Signals are numbered as on Linux: the lowest floor imports no
`signal`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

MOST, HEAD = 4000, 1000
"""Characters of a text that is kept, and of its beginning where it is cut."""

# In running text: a name like that with its value, a header's value, and the password of an URL.
# A number is no secret (`max_tokens=512`). A pattern begins at its key word and its name gives
# nothing back, so that a long message without blanks takes no longer than another.
_SECRET_IN_TEXT = (
    (re.compile(r"(?i)\b(bearer|basic)\s+[\w.~+/=-]{8,}"), r"\1 <redacted>"),
    (re.compile(r"(://[^\s/:@]*:)[^\s/@]+@"), r"\1<redacted>@"),
    (
        re.compile(
            r"(?i)((?:token|secret|passw|api.?key|credential|auth)[\w-]*+[\"']?\s*[=:]\s*[\"']?)"
            r"(?![\d.]+\b)(?!bearer\b|basic\b)[^\s\"',;<>()\[\]{}]+"
        ),
        r"\1<redacted>",
    ),
)


def shortened(text: str, most: int = 200) -> str:
    """One line for people: the first, and where a traceback follows it, the last as well."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if len(lines) > 1 and any("Traceback (most recent call last)" in line for line in lines):
        lines = [lines[0].removesuffix("."), lines[-1]]
        joined = ": ".join(lines)
    else:
        joined = lines[0] if lines else ""
    return joined if len(joined) <= most else joined[: most - 1] + "…"


def cut(text: str) -> str:
    """A text that is kept, without its middle where it is too long: patterns are searched in it,
    and some take the square of its length. A loader worker's ends with the error it reports."""
    return text if len(text) <= MOST else f"{text[:HEAD]} … {text[HEAD - MOST :]}"


def redacted_text(text: str) -> str:
    """A message, with the values behind names that look like secrets left out."""
    for pattern, instead in _SECRET_IN_TEXT:
        text = pattern.sub(instead, text)
    return text


def size(count: int) -> str:
    number = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < 1024 or unit == "GiB":
            break
        number /= 1024
    return f"{number:.0f} {unit}" if number >= 10 or unit == "B" else f"{number:.1f} {unit}"


def processes(count: int) -> str:
    return "1 process" if count == 1 else f"{count} processes"


def ranks(numbers: Iterable[int]) -> str:
    names = [str(number) for number in numbers]
    return f"rank {names[0]}" if len(names) == 1 else f"ranks {', '.join(names)}"


SIGNALS = {
    1: "SIGHUP", 2: "SIGINT", 3: "SIGQUIT", 4: "SIGILL", 5: "SIGTRAP", 6: "SIGABRT", 7: "SIGBUS",
    8: "SIGFPE", 9: "SIGKILL", 10: "SIGUSR1", 11: "SIGSEGV", 12: "SIGUSR2", 13: "SIGPIPE",
    14: "SIGALRM", 15: "SIGTERM", 24: "SIGXCPU", 25: "SIGXFSZ", 31: "SIGSYS",
}  # fmt: skip
SIGKILL, SIGTERM = 9, 15


def signal_name(number: int) -> str:
    return SIGNALS.get(number, f"signal {number}")
