"""How a policy is written down: `walrecover.yaml`, its checks and its schema.

Owns the keys and what they mean; must not read files, nor decide anything.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

import msgspec

from walrecover import hangs
from walrecover.causes import CAUSES, Pattern
from walrecover.errors import BadInput
from walrecover.policy import SCALE, Action, Policy, Treatment

FILE = "walrecover.yaml"
SCHEMA = "https://json-schema.org/draft/2020-12/schema"
JITTER = 0.25
NOT_INHERITED = ("on_errors", "environment")
"""By a cause that has a section of its own: to name it is to say what it needs."""

_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_TIME = r"\d+(?:\.\d+)?\s*(?:ms|s|m|h)"
_VARIABLE = r"[A-Za-z_][A-Za-z0-9_]*"


class Time:
    """`2s`, `5m`: a number and its unit."""

    def __init__(self, given: object) -> None:
        if not isinstance(given, str) or not re.fullmatch(_TIME, given.strip()):
            raise ValueError(
                f"{given!r} is no time: give a number and its unit, such as 500ms, 2s or 5m"
            )
        number, unit = re.split(r"(?<=[\d.])\s*(?=[a-z])", given.strip())
        self.seconds = float(number) * _SECONDS[unit]


class Expression:
    """A regular expression, searched anywhere in a text."""

    def __init__(self, given: object) -> None:
        if not isinstance(given, str) or not given:
            raise ValueError(f"{given!r} is no regular expression")
        try:
            re.compile(given)
        except re.error as error:
            raise ValueError(f"{given!r} does not compile: {error}") from None
        self.pattern = given


class Environment:
    """Variables and what becomes of them: `/2`, `*2`, or a new value."""

    def __init__(self, given: object) -> None:
        if not isinstance(given, dict):
            raise ValueError(f"{given!r} is no list of variables: write NAME: /2, or NAME: value")
        for name, value in given.items():
            if not isinstance(name, str) or not re.fullmatch(_VARIABLE, name):
                raise ValueError(f"{name!r} cannot name a variable")
            if not isinstance(value, str | int | float) or isinstance(value, bool):
                raise ValueError(f"{name}: {value!r} is neither a number nor a text")
            if scale := SCALE.fullmatch(str(value)):
                if not int(scale[2]):
                    raise ValueError(f"{name}: {value} leaves nothing")
            elif "\0" in str(value):
                raise ValueError(f"{name}: {value!r} cannot be the value of a variable")
        self.changes = {name: str(value) for name, value in given.items()}


class HangTimeout:
    """As `--hang-timeout` says it, or by phase: `{step: 10m, snapshot: off}`."""

    def __init__(self, given: object) -> None:
        self.text = (
            ",".join(f"{k}={_off(v)}" for k, v in given.items())
            if isinstance(given, dict)
            else _off(given)
        )
        try:
            self.limits = hangs.parse(self.text)
        except BadInput as error:
            raise ValueError(str(error).removeprefix("--hang-timeout ")) from None


def _off(given: object) -> str:
    """YAML reads `off` as a truth value."""
    return "off" if given is False else str(given)


class Retry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What follows an end. What a cause leaves out is taken from `retry_policy`, except for
    `on_errors` and `environment`."""

    action: Action | None = None
    max_attempts: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] | None = None
    backoff_delay: Time | None = None
    backoff_factor: Annotated[float, msgspec.Meta(ge=1, le=1000)] | None = None
    backoff_cap: Time | None = None
    jitter: bool | Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    on_errors: tuple[Expression, ...] | None = None
    environment: Environment | None = None
    max_rewinds: Annotated[int, msgspec.Meta(ge=0, le=1_000)] | None = None


class OwnPattern(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A sign of the user's own, in an exception's "Type: message" or in a line of output."""

    cause: Literal[tuple(CAUSES)]  # type: ignore[valid-type]
    error: Expression | None = None
    log: Expression | None = None

    def __post_init__(self) -> None:
        if (self.error is None) == (self.log is None):
            raise ValueError("give one of error and log")


Causes = msgspec.defstruct(
    "Causes",
    [(cause, Retry | None, None) for cause in CAUSES],
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
)


class PolicyFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All that `walrecover.yaml` may say."""

    retry_policy: Retry = Retry()
    causes: Causes = Causes()  # type: ignore[valid-type]
    patterns: tuple[OwnPattern, ...] = ()
    logs: tuple[str, ...] = ()
    hang_timeout: HangTimeout | None = None
    on_divergence: Literal["go_on", "stop"] = "go_on"

    def policy(self, max_restarts: int | None = None, initial: float | None = None) -> Policy:
        """The policy in force. What the command line says goes before the file, for all causes."""
        said: dict[str, Any] = {}
        if max_restarts is not None:
            said["max_restarts"] = max_restarts
        if initial is not None:
            said["initial"] = initial
        common = {**_values(self.retry_policy), **said}
        inherited = {name: value for name, value in common.items() if name not in NOT_INHERITED}
        causes = {
            cause: Treatment(**{**inherited, **_values(retry), **said})
            for cause in CAUSES
            if (retry := getattr(self.causes, cause)) is not None
        }
        patterns = tuple(
            Pattern(
                one.cause,
                one.error.pattern if one.error else "",
                one.log.pattern if one.log else "",
            )
            for one in self.patterns
        )
        return Policy(
            **common,
            causes=causes,
            patterns=patterns,
            logs=self.logs,
            on_divergence=self.on_divergence,
        )


def _values(retry: Retry) -> dict[str, Any]:
    """Those keys that were given, as fields of a treatment."""
    jitter = JITTER if retry.jitter is True else retry.jitter
    found: dict[str, Any] = {
        "action": retry.action,
        "max_restarts": None if retry.max_attempts is None else retry.max_attempts - 1,
        "initial": retry.backoff_delay and retry.backoff_delay.seconds,
        "factor": retry.backoff_factor,
        "cap": retry.backoff_cap and retry.backoff_cap.seconds,
        "jitter": None if jitter is None else float(jitter),
        "on_errors": retry.on_errors and tuple(one.pattern for one in retry.on_errors),
        "environment": retry.environment and retry.environment.changes,
        "max_rewinds": retry.max_rewinds,
    }
    return {name: value for name, value in found.items() if value is not None}


def parse(data: bytes, name: str = FILE) -> PolicyFile:
    """Raises BadInput, with the path of what is wrong."""
    try:
        found = msgspec.yaml.decode(data, type=PolicyFile | None, dec_hook=_decoded)
    except msgspec.DecodeError as error:
        raise BadInput(f"{name}: {_explained(str(error))}") from None
    except (UnicodeDecodeError, RecursionError) as error:
        raise BadInput(f"{name}: {error}") from None
    return found or PolicyFile()


def _decoded(kind: type, given: object) -> object:
    return kind(given)


def _explained(text: str) -> str:
    """msgspec's sentence with the path in front of it."""
    text = " ".join(text.split())
    what, _, path = text.partition(" - at `")
    path = path.removesuffix("`")
    if unknown := re.fullmatch(r"Object contains unknown field `(.*)`", what):
        return (
            f"{path or '$'}.{unknown[1]}: no such key: `walrecover policy --schema` has those "
            "that there are"
        )
    return f"{path}: {what}" if path else what


def schema() -> dict[str, Any]:
    """The JSON schema of the file."""
    found = msgspec.json.schema(PolicyFile, schema_hook=_schema_of)
    return {"$schema": SCHEMA, "title": FILE, **found}


def _schema_of(kind: type) -> dict[str, Any]:
    if kind is Time:
        return {"type": "string", "pattern": f"^{_TIME}$"}
    if kind is Expression:
        return {"type": "string", "format": "regex", "minLength": 1}
    if kind is HangTimeout:
        limit = {"type": ["string", "boolean"]}
        spans = dict.fromkeys(hangs.SPANS, limit)
        by_phase = {"type": "object", "properties": spans, "additionalProperties": False}
        return {"anyOf": [limit, by_phase]}
    assert kind is Environment
    return {
        "type": "object",
        "propertyNames": {"pattern": f"^{_VARIABLE}$"},
        "additionalProperties": {"type": ["string", "number"]},
    }


def written(policy: Policy, hang_timeout: HangTimeout | None = None) -> dict[str, Any]:
    """The policy in force as such a file would say it."""
    found: dict[str, Any] = {"retry_policy": _written(policy)}
    if policy.causes:
        found["causes"] = {cause: _written(one) for cause, one in policy.causes.items()}
    if policy.patterns:
        found["patterns"] = [
            {name: value for name, value in msgspec.structs.asdict(one).items() if value}
            for one in policy.patterns
        ]
    if policy.logs:
        found["logs"] = list(policy.logs)
    if policy.on_divergence != "go_on":
        found["on_divergence"] = policy.on_divergence
    if hang_timeout is not None:
        found["hang_timeout"] = hang_timeout.text
    return found


def _written(one: Treatment) -> dict[str, Any]:
    return {
        "action": one.action,
        "max_attempts": one.max_restarts + 1,
        "backoff_delay": _time(one.initial),
        "backoff_factor": one.factor,
        "backoff_cap": _time(one.cap),
        "jitter": one.jitter,
        "on_errors": list(one.on_errors),
        "environment": dict(one.environment),
        "max_rewinds": one.max_rewinds,
    }


def _time(seconds: float) -> str:
    return f"{seconds:.6f}".rstrip("0").rstrip(".") + "s"
