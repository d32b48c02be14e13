"""`walrecover.yaml`: what it may say, what it means, and what is said of a wrong one."""

from __future__ import annotations

import json
import math
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from walrecover.causes import CAUSES, Pattern
from walrecover.errors import BadInput
from walrecover.hangs import Span
from walrecover.policy import Policy, Treatment
from walrecover.policy_file import Causes, parse, schema, written

SEED = b"""
retry_policy:
  max_attempts: 3
  backoff_delay: 2s
  jitter: true
  on_errors:
    - TimeoutError
    - ConnectionReset
"""

FULL = b"""
retry_policy:
  {max_attempts: 5, backoff_delay: 500ms, backoff_factor: 3, backoff_cap: 10m, jitter: 0.5}
causes:
  out_of_memory:
    max_attempts: 2
    environment: {MICRO_BATCH: /2, PYTORCH_ALLOC_CONF: "expandable_segments:True", SEED: 7}
  numeric: {action: rewind}
  data: {action: stop}
  communication: {backoff_delay: 1m, jitter: false}
patterns:
  - {cause: node_lost, log: "Xid 79"}
  - {cause: data, error: "^ValueError: token"}
logs: [train.log]
"""


def test_the_issues_own_policy_is_taken_as_it_stands() -> None:
    policy = parse(SEED).policy()
    assert (policy.max_restarts, policy.initial, policy.jitter) == (2, 2.0, 0.25)
    assert policy.on_errors == ("TimeoutError", "ConnectionReset")
    assert policy.action == "restart"
    assert policy.of("code") is policy


def test_causes_take_from_the_retry_policy_what_they_leave_out() -> None:
    policy = parse(FULL).policy()
    common = {"max_restarts": 4, "initial": 0.5, "factor": 3.0, "cap": 600.0, "jitter": 0.5}
    assert policy.of("code").initial == 0.5
    assert policy.causes == {
        "out_of_memory": Treatment(
            **{**common, "max_restarts": 1},
            environment={
                "MICRO_BATCH": "/2",
                "PYTORCH_ALLOC_CONF": "expandable_segments:True",
                "SEED": "7",
            },
        ),
        "numeric": Treatment(**common, action="rewind"),
        "data": Treatment(**common, action="stop"),
        "communication": Treatment(**{**common, "initial": 60.0, "jitter": 0.0}),
    }
    assert policy.patterns == (
        Pattern("node_lost", log="Xid 79"),
        Pattern("data", error="^ValueError: token"),
    )
    assert policy.logs == ("train.log",)


def test_a_cause_that_is_named_is_not_bound_by_on_errors() -> None:
    policy = parse(SEED + b"causes: {numeric: {action: rewind}}").policy()
    assert policy.of("numeric").on_errors == ()
    assert policy.of("data").on_errors == policy.on_errors


def test_how_often_a_run_may_go_back_can_be_said() -> None:
    policy = parse(b"causes: {numeric: {action: rewind, max_rewinds: 1}}").policy()
    assert (policy.of("numeric").max_rewinds, policy.of("data").max_rewinds) == (1, 3)
    with pytest.raises(BadInput, match=r"\$\.causes\.numeric\.max_rewinds"):
        parse(b"causes: {numeric: {max_rewinds: -1}}")


def test_the_command_line_goes_before_the_file_for_all_causes() -> None:
    policy = parse(FULL).policy(max_restarts=0, initial=7.0)
    assert {one.max_restarts for one in (policy, *policy.causes.values())} == {0}
    assert {one.initial for one in (policy, *policy.causes.values())} == {7.0}


@pytest.mark.parametrize("text", [b"", b"# nothing\n", b"{}", b"retry_policy: {}"])
def test_an_empty_file_is_the_default_policy(text: bytes) -> None:
    assert parse(text).policy() == Policy()


@pytest.mark.parametrize(
    ("text", "path", "says"),
    [
        ("retry_policy: {backoff_delay: -2s}", "$.retry_policy.backoff_delay", "'-2s' is no time"),
        ("retry_policy: {backoff_delay: 2}", "$.retry_policy.backoff_delay", "such as 500ms, 2s"),
        ("retry_policy: {backoff_cap: soon}", "$.retry_policy.backoff_cap", "'soon' is no time"),
        ("retry_policy: {max_attempts: 0}", "$.retry_policy.max_attempts", ">= 1"),
        ("retry_policy: {max_attempts: three}", "$.retry_policy.max_attempts", "`int "),
        ("retry_policy: {max_attemps: 3}", "$.retry_policy.max_attemps", "no such key"),
        ("retry_policy: {jitter: 3}", "$.retry_policy.jitter", "<= 1.0"),
        ("retry_policy: {backoff_factor: 0.5}", "$.retry_policy.backoff_factor", ">= 1.0"),
        ("retry_policy: {action: again}", "$.retry_policy.action", "'again'"),
        ("retry_policy: {on_errors: ['(']}", "$.retry_policy.on_errors[0]", "does not compile"),
        ("retry_policy: {on_errors: TimeoutError}", "$.retry_policy.on_errors", "`array "),
        ("retry_policy:", "$.retry_policy", "null"),
        ("restarts: 3", "$.restarts", "no such key"),
        ("causes: {oom: {}}", "$.causes.oom", "no such key"),
        ("causes: {data: {environment: {1X: /2}}}", "$.causes.data.environment", "'1X' cannot"),
        ("causes: {data: {environment: {X: [1]}}}", "$.causes.data.environment", "neither"),
        ("causes: {data: {environment: {X: /0}}}", "$.causes.data.environment", "leaves nothing"),
        ("causes: {data: {environment: {X: /00}}}", "$.causes.data.environment", "leaves nothing"),
        (r'causes: {data: {environment: {X: "a\0b"}}}', "$.causes.data.environment", "cannot be"),
        ("causes: {data: {environment: X}}", "$.causes.data.environment", "NAME: /2"),
        ("patterns: [{cause: data}]", "$.patterns[0]", "one of error and log"),
        ("patterns: [{cause: x, log: y}]", "$.patterns[0].cause", "'x'"),
        ("patterns: [{cause: data, log: '*'}]", "$.patterns[0].log", "does not compile"),
        ("- 1", "", "got `array`"),
        ("retry_policy: [", "", "line 2"),
        ("\xff", "", "unacceptable character"),
    ],
)
def test_a_wrong_file_is_refused_with_the_path_of_what_is_wrong(
    text: str, path: str, says: str
) -> None:
    with pytest.raises(BadInput) as refused:
        parse(text.encode("latin1"), "my.yaml")
    said = str(refused.value)
    assert said.startswith(f"my.yaml: {path}")
    assert says in said
    assert "\n" not in said


@given(st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
def test_whatever_the_file_holds_it_is_a_policy_or_bad_input(data: bytes) -> None:
    try:
        assert isinstance(parse(data).policy(), Policy)
    except BadInput as error:
        assert str(error).startswith("walrecover.yaml: ")


@pytest.mark.parametrize("text", [SEED, FULL, b""])
def test_the_policy_in_force_reads_back_as_itself(text: bytes) -> None:
    policy = parse(text).policy()
    assert parse(msgspec.yaml.encode(written(policy))).policy() == policy


def test_every_cause_has_its_section() -> None:
    assert set(Causes.__struct_fields__) == set(CAUSES)


def test_the_schema_describes_what_is_read() -> None:
    found: dict[str, Any] = json.loads(msgspec.json.encode(schema()))
    top = found["$defs"]["PolicyFile"]
    assert set(top["properties"]) == {
        "retry_policy",
        "causes",
        "patterns",
        "logs",
        "hang_timeout",
        "on_divergence",
    }
    assert top["additionalProperties"] is False
    retry = found["$defs"]["Retry"]["properties"]
    assert set(retry) == set(written(Policy())["retry_policy"])
    assert {"type": "boolean"} in retry["jitter"]["anyOf"]
    assert {"enum": ["restart", "rewind", "stop"]} in retry["action"]["anyOf"]
    assert any("pattern" in option for option in retry["backoff_delay"]["anyOf"])
    assert set(found["$defs"]["Causes"]["properties"]) == set(CAUSES)


@pytest.mark.parametrize(
    ("text", "span", "seconds"),
    [
        (b"hang_timeout: 10m", "step", 600.0),
        (b"hang_timeout: off", "step", math.inf),
        (b"hang_timeout: {step: 30s, snapshot: off}", "step", 30.0),
        (b"hang_timeout: {step: 30s, snapshot: off}", "snapshot", math.inf),
        (b"hang_timeout: {first-step: 2h}", "first-step", 7200.0),
    ],
)
def test_how_long_a_rank_may_stand_still(text: bytes, span: Span, seconds: float) -> None:
    found = parse(text).hang_timeout
    assert found is not None and found.limits.of(span) == seconds
    again = msgspec.yaml.encode(written(Policy(), found))
    assert parse(again).hang_timeout.limits == found.limits  # type: ignore[union-attr]


@pytest.mark.parametrize("text", [b"hang_timeout: 10", b"hang_timeout: {steps: 10m}"])
def test_a_wrong_hang_timeout_is_named(text: bytes) -> None:
    with pytest.raises(BadInput, match=r"\$\.hang_timeout"):
        parse(text)
