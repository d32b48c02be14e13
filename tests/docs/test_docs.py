"""What the documents say, held against the source: nothing undocumented, nothing stale, links and
names that exist, commands and examples that work.
"""

from __future__ import annotations

import ast
import functools
import os
import pkgutil
import re
import shlex
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from walrecover import cli, errors, events, failpoints, goodput
from walrecover_daemon import book, guardfile, schema
from walrecover_daemon import cli as daemon

ROOT = Path(__file__).parents[2]
SPECS = sorted((ROOT / "specs").rglob("*.md"))
PAGES = [ROOT / "README.md", *SPECS]
SPAN = re.compile(r"`([^`\n]+)`")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


@functools.cache
def text_of(page: Path) -> str:
    return page.read_text()


def prose_of(page: Path) -> str:
    """The page without its code blocks."""
    return FENCE.sub("", text_of(page))


def blocks(page: Path, language: str) -> list[str]:
    return [body for name, body in FENCE.findall(text_of(page)) if name == language]


def label(page: Path) -> str:
    return str(page.relative_to(ROOT))


# --- messages -----------------------------------------------------------------------------------

HOLE = "…"
TROUBLESHOOTING = ROOT / "specs" / "troubleshooting.md"

SPEAKERS = {"storage", "say", "_say", "abandon", "warning", "error", "_told", "_trouble"}
"""Functions whose text people read, beside the errors."""

REASONS = {
    "disagreement",
    "_misplaced",
    "_nothing_verifies",
    "_lost",
    "_refusal",
    "shortcomings",
    "_taken_over",
    "_import_ahead",
    "script_of",
    "cause_of",
}
"""Functions that return, or collect, parts of messages."""


def error_names() -> set[str]:
    """Every class of the package that is raised with a message."""
    found = {"TypeError", "SystemExit"}
    found |= {name for name, value in vars(errors).items() if isinstance(value, type)}
    nodes = (node for _, tree in sources() for node in ast.walk(tree))
    classes = [node for node in nodes if isinstance(node, ast.ClassDef)]
    grown = True
    while grown:
        grown = False
        for node in classes:
            if node.name not in found:
                bases = {base.id for base in node.bases if isinstance(base, ast.Name)}
                if bases & found:
                    found.add(node.name)
                    grown = True
    return found - {"Stopped"}


@functools.cache
def sources() -> list[tuple[Path, ast.Module]]:
    folders = ROOT / "walrecover", ROOT / "daemon" / "walrecover_daemon"
    paths = [path for folder in folders for path in sorted(folder.rglob("*.py"))]
    return [(path, ast.parse(path.read_text())) for path in paths]


def literal(node: ast.expr) -> str | None:
    """A string with `…` for what varies, or None for another expression."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        parts = [literal(v) if isinstance(v, ast.Constant) else HOLE for v in node.values]
        return "".join(part or HOLE for part in parts)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        sides = literal(node.left), literal(node.right)
        return None if sides == (None, None) else "".join(side or HOLE for side in sides)
    return None


def called(node: ast.Call) -> str:
    if isinstance(node.func, ast.Name):
        return node.func.id
    return node.func.attr if isinstance(node.func, ast.Attribute) else ""


def is_spoken(node: ast.Call) -> bool:
    return called(node) == "print" and any(keyword.arg == "file" for keyword in node.keywords)


def strings_in(tree: ast.Module, names: set[str]) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        candidates: list[ast.expr] = []
        if isinstance(node, ast.Call) and (called(node) in names or is_spoken(node)):
            candidates = node.args
        elif isinstance(node, ast.FunctionDef) and node.name in REASONS:
            inner = list(ast.walk(node))
            candidates = [n.value for n in inner if isinstance(n, ast.Return) and n.value]
            candidates += [a for n in inner if isinstance(n, ast.Call) for a in n.args]
        for expression in candidates:
            for part in ast.walk(expression):
                if isinstance(part, ast.JoinedStr | ast.Constant):
                    text = literal(part)
                    if text:
                        yield part.lineno, text
                        if part is expression:
                            break


def fragments(text: str) -> list[str]:
    """The literal parts of a message that say something."""
    text = re.sub(r"\s+", " ", text.removeprefix("walrecover: "))
    parts = [part.strip(" :;,") for part in re.split(f"{HOLE}+|%d|%s", text)]
    return [part for part in parts if re.search(r"[A-Za-z]{2}", part)]


def is_message(text: str) -> bool:
    """A sentence or a part of one, and no name, path or key."""
    said = fragments(text)
    return any(re.search(r"[A-Za-z]{2,}[:,]? |[A-Za-z]{2}: ?$", f"{part} ") for part in said) and (
        " " in text.strip()
    )


@functools.cache
def messages() -> dict[str, str]:
    """Where each message of the source stands, by its text."""
    names = error_names() | SPEAKERS
    return {
        text: f"{path.relative_to(ROOT)}:{line}"
        for path, tree in sources()
        for line, text in strings_in(tree, names)
        if is_message(text)
    }


def occurs(parts: list[str], text: str) -> bool:
    place = 0
    for part in parts:
        found = text.find(part, place)
        if found < 0:
            return False
        place = found + len(part)
    return True


def documented() -> list[str]:
    """The messages of the page: code in the first column of its tables."""
    rows = [line.split("|")[1] for line in text_of(TROUBLESHOOTING).splitlines() if line[:1] == "|"]
    return [span for row in rows for span in SPAN.findall(row)]


def test_every_message_has_a_line_in_the_troubleshooting_page() -> None:
    spans = documented()
    missing = [
        f"{where}: {text!r}"
        for text, where in messages().items()
        if not any(occurs(fragments(text), span) for span in spans)
    ]
    assert not missing, "\n".join(missing)


def test_the_messages_are_found_at_all() -> None:
    found = messages()
    assert len(found) > 120
    assert any("which is alive" in text for text in found)


@functools.cache
def everything_said() -> str:
    """All string constants of the source, those of f-strings included."""
    texts = [
        re.sub(r"\s+", " ", node.value)
        for _, tree in sources()
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    return "\0".join(texts)


@pytest.mark.parametrize("span", documented())
def test_no_line_of_the_troubleshooting_page_is_stale(span: str) -> None:
    said = everything_said()
    assert all(part in said for part in fragments(span)), span


# --- commands and options -----------------------------------------------------------------------


def commands() -> dict[str, click.Command]:
    context = click.Context(cli.group)
    found = {}
    for name in cli.COMMANDS:
        command = cli.group.get_command(context, name)
        assert command is not None
        found[name] = command
    return found


def options(command: click.Command) -> set[str]:
    own = {name for parameter in command.params for name in parameter.opts}
    return {name for name in own if name.startswith("-")} | {"-h", "--help"}


@pytest.mark.parametrize("name", list(cli.COMMANDS))
def test_every_command_and_option_is_in_the_readme(name: str) -> None:
    spans = " ".join(SPAN.findall(text_of(ROOT / "README.md")))
    words = set(re.findall(r"[\w-]+", spans))
    assert name in words
    long = {option for option in options(commands()[name]) if option.startswith("--")} - {"--help"}
    assert long <= words, f"not in README.md: {sorted(long - words)}"


def test_every_option_of_the_daemon_is_in_the_readme() -> None:
    words = set(re.findall(r"[\w-]+", text_of(ROOT / "README.md")))
    for command in daemon.group.commands.values():
        long = {option for option in options(command) if option.startswith("--")} - {"--help"}
        assert {command.name, *long} <= words, f"{command.name}: {sorted(long - words)}"


def test_every_table_and_column_of_the_read_model_is_in_the_daemons_spec() -> None:
    conn = sqlite3.connect(":memory:", isolation_level=None)
    for migrate in schema.MIGRATIONS:
        migrate(conn)
    page = text_of(ROOT / "specs" / "19-daemon.md")
    tables = [row[0] for row in conn.execute("SELECT name FROM sqlite_master WHERE type='table'")]
    for table in set(tables) - {"owner"}:
        (row,) = re.findall(rf"^\| `{table}` \|.*", page, re.MULTILINE)
        words = set(re.findall(r"\w+", row)) | set(goodput.KINDS)
        columns = {column[1] for column in conn.execute(f"PRAGMA table_info({table})")}
        assert columns <= words, f"{table}: {sorted(columns - words)}"
    conn.close()


def test_every_table_and_column_of_the_guards_file_is_in_its_spec(tmp_path: Path) -> None:
    path = tmp_path / "guard.db"
    book.prepare(path, 0.0)
    conn = sqlite3.connect(path)
    page = text_of(ROOT / "specs" / "22-guarding.md")
    tables = [row[0] for row in conn.execute("SELECT name FROM sqlite_master WHERE type='table'")]
    assert len(tables) == 4
    for table in tables:
        (row,) = re.findall(rf"^\| `{table}` \|.*", page, re.MULTILINE)
        columns = {column[1] for column in conn.execute(f"PRAGMA table_info({table})")}
        assert columns <= set(re.findall(r"\w+", row)), table
    conn.close()


def test_every_key_of_the_guards_file_is_in_its_spec() -> None:
    spans = " ".join(SPAN.findall(text_of(ROOT / "specs" / "22-guarding.md")))
    words = set(re.findall(r"\w+", spans))
    sections = guardfile.Scrub, guardfile.Retention, guardfile.Archive, guardfile.Alerts
    for section in (guardfile.Guarded, *sections):
        assert set(section.__struct_fields__) <= words, section.__name__


def test_every_environment_variable_is_in_the_readme() -> None:
    used = set()
    for _, tree in sources():
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                used |= set(re.findall(r"\bWALRECOVER_[A-Z_]*[A-Z]\b", node.value))
    assert len(used) > 8
    missing = used - set(re.findall(r"\bWALRECOVER_[A-Z_]*[A-Z]\b", text_of(ROOT / "README.md")))
    assert not missing


def lines_of_shell() -> list[tuple[str, str]]:
    return [
        (label(page), line)
        for page in PAGES
        for body in blocks(page, "bash")
        for line in body.replace("\\\n", " ").splitlines()
        if re.search(r"\bwalrecover\b", line.split("#")[0])
    ]


@pytest.mark.parametrize(("page", "line"), lines_of_shell())
def test_commands_in_bash_blocks_are_known(page: str, line: str) -> None:
    words = shlex.split(line, comments=True)
    if "walrecover" not in words:  # pip install walrecover[torch]
        return
    mine = words[words.index("walrecover") + 1 :]
    own = mine[: mine.index("--")] if "--" in mine else mine
    if own and own[0].startswith("-"):
        assert set(own) <= {"--version", "--help", "-h", "-v", "-q"}, line
        return
    if not own:
        return
    assert own[0] in cli.COMMANDS, line
    known = options(commands()[own[0]])
    given = {word.split("=")[0] for word in own[1:] if word.startswith("-")}
    assert given <= known, f"{page}: {sorted(given - known)}"


# --- events and failpoints ----------------------------------------------------------------------


def test_every_event_type_and_field_is_in_the_journals_spec() -> None:
    rows = {}
    for line in text_of(ROOT / "specs" / "02-journal.md").splitlines():
        match = re.match(r"\| `([A-Z]\w+)` \|", line)
        if match:
            rows[match[1]] = line
    assert set(rows) == {kind.__name__ for kind in events.EVENT_TYPES}
    for kind in events.EVENT_TYPES:
        fields = set(kind.__struct_fields__) - {"at"}
        missing = fields - set(re.findall(r"\w+", rows[kind.__name__]))
        assert not missing, f"{kind.__name__}: {missing}"


def test_every_failpoint_is_a_row_of_the_crash_table() -> None:
    page = text_of(ROOT / "specs" / "05-crash-safety.md")
    table = page.partition("## The crash table")[2].partition("## Other writes")[0]
    rows = re.findall(r"^\| `([a-z.]+)` \|", table, re.MULTILINE)
    assert sorted(rows) == sorted(failpoints.NAMES)


def test_every_failpoint_is_passed_somewhere() -> None:
    source = "".join(path.read_text() for path, _ in sources() if path.name != "failpoints.py")
    assert [name for name in failpoints.NAMES if f'"{name}"' not in source] == []


# --- names, links, files ------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=label)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", prose_of(page)):
        if not target.startswith(("http://", "https://", "#")):
            assert (page.parent / target.partition("#")[0]).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=label)
def test_files_that_are_named_exist(page: Path) -> None:
    for span in SPAN.findall(prose_of(page)):
        if re.match(r"(walrecover|tests|examples|specs|daemon)/[\w./-]*$", span):
            assert (ROOT / span).exists(), span


@pytest.mark.parametrize("page", PAGES, ids=label)
def test_tests_that_are_named_exist(page: Path) -> None:
    for name in re.findall(r"`(test_\w+)`", prose_of(page)):
        assert name in all_tests(), name


@functools.cache
def all_tests() -> frozenset[str]:
    found = re.compile(r"^\s*(?:async )?def (test_\w+)", re.MULTILINE)
    paths = (ROOT / "tests").rglob("*.py")
    return frozenset(name for path in paths for name in found.findall(path.read_text()))


@pytest.mark.parametrize("page", PAGES, ids=label)
def test_python_names_exist(page: Path) -> None:
    for span in SPAN.findall(prose_of(page)):
        match = re.match(r"(walrecover(?:\.\w+)+)(?:\(.*\))?$", span)
        if match and span != "walrecover.yaml":
            assert is_there(match[1]), span


def is_there(dotted: str) -> bool:
    try:
        pkgutil.resolve_name(dotted)
    except (ImportError, AttributeError):
        return False
    return True


def test_make_targets_in_the_readme_exist() -> None:
    makefile = text_of(ROOT / "Makefile")
    for target in re.findall(r"\bmake ([a-z][\w-]*)", text_of(ROOT / "README.md")):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


# --- the README's example -----------------------------------------------------------------------

SETTING = """
import torch
from torch.nn.functional import mse_loss
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(1)
torch.set_num_threads(1)
epochs = 2
dataset = TensorDataset(torch.randn(12, 3), torch.randn(12, 1))
loader = DataLoader(dataset, batch_size=4, shuffle=True)
model = torch.nn.Linear(3, 1)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2)
"""


def readme_programs() -> list[str]:
    return blocks(ROOT / "README.md", "python")


@pytest.mark.parametrize("number", range(len(readme_programs())))
def test_the_readmes_python_runs(number: int, tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(SETTING + readme_programs()[number])
    environ = {k: v for k, v in os.environ.items() if not k.startswith("WALRECOVER_")}
    for expected in ("new, in", "resumes after step 6 (finished)"):
        done = subprocess.run(
            [sys.executable, str(script)],
            cwd=tmp_path,
            env={**environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        assert expected in done.stderr


def test_there_is_a_program_in_the_readme() -> None:
    assert readme_programs()
