"""The parser on hand-written strace output: halves of calls, races, and what it refuses."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.crash_states import TraceError, ops, parse
from tests.crash_states.calls import read_calls
from tests.crash_states.record import Recording, Tree

ROOT, ACK = "/r", "/w/ACK"


def parsed(tmp_path: Path, text: str, after: Tree) -> list[ops.Op]:
    """`text` is strace's with readable strings, where $ is the end of a line."""
    trace = tmp_path / "trace"
    lines = [_STRING.sub(_as_hex, line.strip()) for line in text.strip().splitlines()]
    trace.write_text("".join(f"{line}\n" for line in lines))
    return parse(Recording(Path(ROOT), trace, Path(ACK), {}, after, 0, ""))


_STRING = re.compile(r'"([^"]*)"|<(/[^>]*)>')


def _as_hex(match: re.Match[str]) -> str:
    text = (match[1] or match[2]).replace("$", "\n")
    return match[0][0] + "".join(f"\\x{byte:02x}" for byte in text.encode()) + match[0][-1]


def shown(operations: list[ops.Op]) -> list[str]:
    return [str(op) for op in operations]


def test_halves_of_a_call_are_joined(tmp_path: Path) -> None:
    found = parsed(
        tmp_path,
        """
        10 openat(AT_FDCWD, "a", O_WRONLY|O_CREAT, 0666) = 3
        11 getpid( <unfinished ...>
        10 write(3, "text", 4 <unfinished ...>
        11 <... getpid resumed>) = 11
        10 <... write resumed>) = 3
        10 --- SIGCHLD {si_signo=SIGCHLD} ---
        10 +++ exited with 0 +++
        """.replace("getpid", "sync_file_range"),
        {"a": b"tex"},
    )
    assert shown(found) == ["create a", "write a 0+3"]
    write = found[1]
    assert (write.begun, write.seq) == (4, 8)


def test_a_name_whose_call_has_not_returned_yet_is_explained(tmp_path: Path) -> None:
    found = parsed(
        tmp_path,
        """
        10 mkdir("d", 0777 <unfinished ...>
        11 mkdir("d", 0777) = -1 EEXIST (File exists)
        11 openat(AT_FDCWD, "d/a", O_WRONLY|O_CREAT, 0666) = 3
        10 <... mkdir resumed>) = 0
        """,
        {"d": None, "d/a": b""},
    )
    assert shown(found) == ["mkdir d", "create d/a"]


def test_a_name_that_nothing_explains_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="a exists, and no call was seen that made it"):
        parsed(tmp_path, '10 openat(AT_FDCWD, "a", O_WRONLY) = 3', {"a": b""})


def test_a_descriptor_is_free_when_its_close_begins(tmp_path: Path) -> None:
    found = parsed(
        tmp_path,
        """
        10 openat(AT_FDCWD, "a", O_WRONLY|O_CREAT, 0666) = 3
        10 clone(child_stack=NULL, flags=CLONE_VM|CLONE_FS|CLONE_FILES) = 11
        10 close(3 <unfinished ...>
        11 openat(AT_FDCWD, "b", O_WRONLY|O_CREAT, 0666) = 3
        10 <... close resumed>) = 0
        11 write(3, "b", 1) = 1
        """,
        {"a": b"", "b": b"b"},
    )
    assert shown(found) == ["create a", "create b", "write b 0+1"]


def test_a_child_that_speaks_before_its_birth_returned_has_its_descriptors(tmp_path: Path) -> None:
    found = parsed(
        tmp_path,
        """
        10 openat(AT_FDCWD, "a", O_WRONLY|O_CREAT, 0666) = 3
        10 clone(child_stack=NULL, flags=CLONE_CHILD_SETTID|SIGCHLD <unfinished ...>
        11 write(3, "child", 5) = 5
        11 close(3) = 0
        10 <... clone resumed>, child_tidptr=0x7f) = 11
        10 write(3, "parent", 6) = 6
        """,
        {"a": b"childparent"},
    )
    assert shown(found) == ["create a", "write a 0+5", "write a 5+6"]


def test_acknowledgements_are_lines_of_their_file(tmp_path: Path) -> None:
    found = parsed(
        tmp_path,
        """
        10 openat(AT_FDCWD, "/w/ACK", O_WRONLY|O_APPEND) = 3
        10 write(3, "on", 2) = 2
        10 writev(3, [{iov_base="e$t", iov_len=3}, {iov_base="wo$", iov_len=3}], 2) = 6
        """,
        {},
    )
    assert shown(found) == ["ack one", "ack two"]


def test_a_write_longer_than_strace_shows_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="more bytes"):
        parsed(
            tmp_path,
            """
            10 openat(AT_FDCWD, "a", O_WRONLY|O_CREAT, 0666) = 3
            10 write(3, "long"..., 9000000) = 9000000
            """,
            {},
        )


def test_a_sync_of_another_file_than_expected_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="fsync of /r/b, which was taken for"):
        parsed(
            tmp_path,
            """
            10 openat(AT_FDCWD, "a", O_WRONLY|O_CREAT, 0666) = 3
            10 fsync(3</r/b>) = 0
            """,
            {"a": b""},
        )


def test_a_failed_sync_is_none(tmp_path: Path) -> None:
    found = parsed(
        tmp_path,
        """
        10 openat(AT_FDCWD, "a", O_WRONLY|O_CREAT, 0666) = 3
        10 fsync(3</r/a>) = -1 EIO (Input/output error)
        """,
        {"a": b""},
    )
    assert shown(found) == ["create a"]


def test_a_tree_that_the_calls_do_not_explain_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r"do not explain .* \['a'\]"):
        parsed(tmp_path, '10 openat(AT_FDCWD, "a", O_WRONLY|O_CREAT, 0666) = 3', {"a": b"?"})


def test_calls_that_never_returned_are_left_out() -> None:
    lines = ["1 fsync(3 <unfinished ...>", "2 fsync(4) = ?", "3 fsync(5) = 0"]
    assert [call.fd(0) for call in read_calls(lines)] == [5]
