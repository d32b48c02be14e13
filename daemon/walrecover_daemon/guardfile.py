"""What is guarded, as `--guard FILE` says it: the keys and what they mean (specs/22-guarding.md).

Pure. Must not read files, nor do what they ask for.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Annotated

import msgspec

from walrecover import retention
from walrecover.errors import BadInput
from walrecover.retention import LEAST_KEPT, Best, Rules

_Count = Annotated[int, msgspec.Meta(ge=1)]


class Age:
    """`12h`, `7d`, in seconds; `off` is None."""

    def __init__(self, given: object) -> None:
        self.said = str(given)
        self.seconds: float | None = None
        if given is not False and given != "off":  # YAML reads `off` as a truth value
            try:
                self.seconds = retention.parse_age(self.said, "")
            except BadInput as error:
                raise ValueError(str(error).strip()) from None


class Span(Age):
    """The same, and never `off`."""

    seconds: float

    def __init__(self, given: object) -> None:
        super().__init__(given)
        if not self.seconds:
            raise ValueError(f"{given!r} is no time: give a number and its unit, such as 30s or 1h")


class Metric:
    """`loss:min`."""

    def __init__(self, given: object) -> None:
        try:
            self.best: Best = retention.parse_best(str(given))
        except BadInput as error:
            raise ValueError(str(error).removeprefix("--best ")) from None


class _Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class Scrub(_Section, frozen=True, kw_only=True):
    cycle: Age = Age("1d")


class Retention(_Section, frozen=True, kw_only=True):
    """Rules for the runs whose name fits the pattern."""

    runs: str = "*"
    every: Span = Span("1h")
    keep_last: Annotated[int, msgspec.Meta(ge=LEAST_KEPT)] = 3
    keep_every: _Count | None = None
    best: tuple[Metric, ...] = ()
    pins: tuple[Annotated[int, msgspec.Meta(ge=0)], ...] = ()
    older_than: Span | None = None

    def rules(self, steps: frozenset[int]) -> Rules:
        """For a run that has snapshots of these steps: of others a pin says nothing."""
        older = self.older_than
        return Rules(
            self.keep_last,
            self.keep_every,
            tuple(one.best for one in self.best),
            frozenset(self.pins) & steps,
            older.seconds if older else None,
            older.said if older else "",
        )


class Archive(_Section, frozen=True, kw_only=True):
    """`to`: a directory, or `s3://bucket/prefix`."""

    to: Annotated[str, msgspec.Meta(min_length=1)]
    every: Span = Span("30s")


class Alerts(_Section, frozen=True, kw_only=True):
    """`disk_free`: a share of the file system."""

    url_file: str | None = None
    token_file: str | None = None
    no_snapshot_for: Age = Age("1h")
    disk_free: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 0.05


class Guarded(_Section, frozen=True, kw_only=True):
    """All that the file may say."""

    scrub: Scrub = Scrub()
    retention: tuple[Retention, ...] = ()
    archive: Archive | None = None
    alerts: Alerts = Alerts()


def rules_for(run: str, sections: Sequence[Retention]) -> Retention | None:
    """The first that fits; None: the run is left alone."""
    return next((one for one in sections if fnmatchcase(run, one.runs)), None)


def parse(data: bytes, name: str) -> Guarded:
    """Raises BadInput, with the path of what is wrong."""
    try:
        found = msgspec.yaml.decode(data, type=Guarded | None, dec_hook=_decoded)
    except msgspec.DecodeError as error:
        raise BadInput(f"{name}: {_explained(str(error))}") from None
    except (UnicodeDecodeError, RecursionError) as error:
        raise BadInput(f"{name}: {error}") from None
    found = found or Guarded()
    if found.alerts.token_file and not found.alerts.url_file:
        raise BadInput(f"{name}: $.alerts.token_file: there is no url_file to send it to")
    return found


def _decoded(kind: type, given: object) -> object:
    return kind(given)


def _explained(text: str) -> str:
    """msgspec's sentence with the path in front of it."""
    what, _, path = " ".join(text.split()).partition(" - at `")
    path = path.removesuffix("`") or "$"
    if unknown := re.fullmatch(r"Object contains unknown field `(.*)`", what):
        return f"{path}.{unknown[1]}: no such key: specs/22-guarding.md has those that there are"
    return f"{path}: {what}"
