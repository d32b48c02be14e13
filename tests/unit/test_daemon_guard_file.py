"""What is guarded, as the file says it: defaults, rules by run, and nonsense named by its path."""

from __future__ import annotations

from pathlib import Path

import pytest

from walrecover.errors import BadInput
from walrecover.retention import Best, Rules
from walrecover_daemon import guardfile, sending


def test_an_empty_file_scrubs_daily_and_changes_nothing() -> None:
    found = guardfile.parse(b"", "guard.yaml")
    assert found.scrub.cycle.seconds == 86400
    assert (found.retention, found.archive, found.alerts.url_file) == ((), None, None)
    assert guardfile.rules_for("any", found.retention) is None


def test_off_is_never() -> None:
    text = b"{scrub: {cycle: off}, alerts: {no_snapshot_for: 'off'}}"
    found = guardfile.parse(text, "guard.yaml")
    assert found.scrub.cycle.seconds is None
    assert found.alerts.no_snapshot_for.seconds is None


def test_the_first_rules_that_fit_count_and_a_pin_is_of_those_that_have_it() -> None:
    text = b"""
retention:
  - {runs: "gpt-[0-9]*", keep_last: 5, keep_every: 100, best: ["loss:min"], pins: [3, 4]}
  - {runs: "gpt-*", older_than: 7d, every: 5m}
"""
    found = guardfile.parse(text, "guard.yaml").retention
    first = guardfile.rules_for("gpt-1f3a", found)
    assert first and first.every.seconds == 3600
    best = (Best("loss", "min"),)
    assert first.rules(frozenset({4, 8})) == Rules(5, 100, best, frozenset({4}), None, "")
    second = guardfile.rules_for("gpt-x", found)
    assert second and second.every.seconds == 300
    assert second.rules(frozenset()) == Rules(3, None, (), frozenset(), 7 * 86400.0, "7d")
    assert guardfile.rules_for("vae", found) is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("scrub: {cycle: 7}", "$.scrub.cycle: 7: give a number and its unit, such as 12h or 7d"),
        ("scrub: {cycle: [1d]}", "$.scrub.cycle: ['1d']: give a number"),
        ("retention: [{keep_last: 1}]", "$.retention[0].keep_last: Expected `int` >= 2"),
        ("retention: [{best: [loss]}]", "give a metric and which end is best, such as loss:min"),
        ("retention: [{every: off}]", "False is no time: give a number and its unit"),
        ("retention: [{pins: [-1]}]", "$.retention[0].pins[0]: Expected `int` >= 0"),
        ("archive: {to: ''}", "$.archive.to: Expected `str` of length >= 1"),
        ("archive: {}", "$.archive: Object missing required field `to`"),
        ("archive: {too: x}", "$.archive.too: no such key: specs/22-guarding.md has those"),
        ("archive: {to: x, every: 0s}", "0s' is no time: give a number and its unit"),
        ("alerts: {token_file: x}", "$.alerts.token_file: there is no url_file to send it to"),
        ("alerts: {no_snapshot_for: often}", "$.alerts.no_snapshot_for: often: give a number"),
        ("alerts: {disk_free: 1}", "$.alerts.disk_free: Expected `float` < 1"),
        ("- a\n- b", "$: Expected `object | null`, got `array`"),
        ("a: [", "guard.yaml: "),
        ("a: \0", "guard.yaml: "),
    ],
)
def test_nonsense_is_named_by_its_path(text: str, said: str) -> None:
    with pytest.raises(BadInput) as caught:
        guardfile.parse(text.encode(), "guard.yaml")
    assert str(caught.value).startswith("guard.yaml: ")
    assert said in str(caught.value)


# --- the webhook's address ------------------------------------------------------------------------


def test_an_address_is_read_and_never_shown(tmp_path: Path) -> None:
    (tmp_path / "url").write_text("https://hooks.example:8443/T0/secret?key=other\n")
    (tmp_path / "token").write_text("a-token\n")
    found = sending.read_webhook(str(tmp_path / "url"), str(tmp_path / "token"))
    assert (found.secure, found.host, found.port) == (True, "hooks.example", 8443)
    assert (found.path, found.token) == ("/T0/secret?key=other", "a-token")
    assert f"{found} {found!r}" == "the webhook at hooks.example the webhook at hooks.example"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "holds no line of text"),
        ("a\nb", "holds no line of text"),
        ("ftp://secret.example/x", "holds no address: give one line, such as https://host/path"),
        ("secret.example", "holds no address"),
        ("http://secret.example:port/", "holds no address"),
        ("http:///secret", "holds no address"),
        ("http://secret.example/a b", "holds no address"),
        ("https://me:secret@host/", "holds a password: give a token_file instead"),
    ],
)
def test_what_is_no_address_is_refused_and_not_repeated(
    tmp_path: Path, text: str, said: str
) -> None:
    (tmp_path / "url").write_text(text)
    with pytest.raises(BadInput, match=said) as caught:
        sending.read_webhook(str(tmp_path / "url"), None)
    assert "secret" not in str(caught.value)
