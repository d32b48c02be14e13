"""Why an attempt ended: the table of signs, row by row, and what stands ahead of it."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from walrecover.causes import (
    CAUSES,
    OTHER,
    RULES,
    Evidence,
    Forced,
    Memory,
    Pattern,
    Raised,
    Verdict,
    classify,
    unseen,
)
from walrecover.entries import Holder
from walrecover.events import ExceptionRaised


def raised(kind: str, message: str = "", *, rank: int | None = 0, **more: Any) -> Raised:
    more = {"file": "/home/me/train.py", "line": 31, "function": "train", "step": 12, **more}
    return Raised(rank, ExceptionRaised(kind=kind, message=message, **more))


def of(kind: str, message: str = "", **more: Any) -> Verdict:
    return classify(Evidence(code=1, raised=(raised(kind, message, **more),)))


@pytest.mark.parametrize(
    ("cause", "kind", "message"),
    [
        ("out_of_memory", "torch.OutOfMemoryError", "CUDA out of memory. Tried to allocate 2 GiB"),
        ("out_of_memory", "torch.cuda.OutOfMemoryError", ""),
        ("out_of_memory", "MemoryError", ""),
        ("out_of_memory", "builtins.MemoryError", ""),
        ("out_of_memory", "numpy._core._exceptions._ArrayMemoryError", "Unable to allocate 8 GiB"),
        (
            "out_of_memory",
            "RuntimeError",
            "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate "
            "memory: you tried to allocate 4000000000000 bytes. Error code 12",
        ),
        ("out_of_memory", "RuntimeError", "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"),
        ("out_of_memory", "OSError", "[Errno 12] Cannot allocate memory"),
        ("storage", "OSError", "[Errno 28] No space left on device: 'out/model.pt'"),
        ("storage", "OSError", "[Errno 30] Read-only file system: 'x'"),
        ("storage", "OSError", "[Errno 5] Input/output error"),
        ("storage", "OSError", "[Errno 122] Disk quota exceeded"),
        ("storage", "RuntimeError", "PytorchStreamWriter failed writing file data/0: file write"),
        ("storage", "walrecover.errors.StorageFailed", "cannot write x: no space"),
        ("data", "RuntimeError", "DataLoader worker (pid 77) is killed by signal: Killed. "),
        ("data", "RuntimeError", "DataLoader worker (pid(s) 77) exited unexpectedly"),
        ("data", "ValueError", "Caught ValueError in DataLoader worker process 0.\nOriginal Trac"),
        ("communication", "torch.distributed.DistBackendError", "NCCL error in: x.cpp:1"),
        ("communication", "torch.distributed.DistStoreError", "wait timeout after 60000ms"),
        ("communication", "torch.distributed.DistNetworkError", "failed to recv, got 0 bytes"),
        (
            "communication",
            "RuntimeError",
            "[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [::1]",
        ),
        ("communication", "RuntimeError", "Socket Timeout"),
        ("communication", "ConnectionResetError", "[Errno 104] Connection reset by peer"),
        ("communication", "BrokenPipeError", "[Errno 32] Broken pipe"),
        ("communication", "RendezvousTimeoutError", ""),
        (
            "communication",
            "walrecover.errors.WalrecoverError",
            "rank 1 did not come to walrecover.attach() within 60 s",
        ),
        ("numeric", "FloatingPointError", "overflow encountered in multiply"),
        ("numeric", "RuntimeError", "Function 'LogBackward0' returned nan values in its 0th out"),
        ("numeric", "ValueError", "loss is NaN, giving up"),
        ("numeric", "RuntimeError", "The total norm of order 2.0 for gradients is non-finite"),
        ("fenced", "walrecover.errors.Fenced", "attempt 3 was superseded by attempt 4"),
        ("code", "ValueError", "not enough values to unpack"),
        ("code", "FileNotFoundError", "[Errno 2] No such file or directory: 'train.bin'"),
        ("code", "KeyError", "'finance'"),
        ("code", "RuntimeError", "mat1 and mat2 shapes cannot be multiplied (4x3 and 2x1)"),
        ("code", "somebody.OwnError", ""),
    ],
)
def test_an_exception_has_its_class(cause: str, kind: str, message: str) -> None:
    assert of(kind, message).cause == cause


def test_a_base_class_tells_what_the_own_type_does_not() -> None:
    assert of("mine.LostServer", bases=("ConnectionError", "OSError")).cause == "communication"
    assert of("mine.LostServer", bases=("OSError",)).cause == "code"


def test_what_comes_out_of_a_loops_iterable_is_data_unless_something_says_more() -> None:
    assert of("ValueError", "bad sample", fetching=True).cause == "data"
    assert of("MemoryError", fetching=True).cause == "out_of_memory"
    assert of("OSError", "[Errno 5] Input/output error", fetching=True).cause == "storage"


def test_any_exception_after_a_loss_that_is_not_finite_is_numeric() -> None:
    evidence = Evidence(code=1, raised=(raised("AssertionError"),), infinite="loss is nan at 12")
    verdict = classify(evidence)
    assert verdict.cause == "numeric"
    assert "loss is nan at 12" in verdict.sentence


@pytest.mark.parametrize(
    ("evidence", "cause", "says"),
    [
        (Evidence(code=0), "done", "exit code 0"),
        (Evidence(code=0, infinite="loss is nan"), "done", "loss is nan"),
        (Evidence(code=126, started=False), "unusable", "126"),
        (Evidence(code=3), "code", "exit code 3, and no rank said why"),
        (Evidence(code=1, log=("usage: train.py",)), "code", "usage: train.py"),
        (Evidence(code=1, infinite="loss is inf"), "numeric", "loss is inf"),
        (Evidence(code=75), "preempted", "run again"),
        (Evidence(signal=15), "preempted", "from outside"),
        (Evidence(code=143, stopped_by=15), "preempted", "from outside"),
        (Evidence(code=3, asked=15), "preempted", "asked to stop by SIGTERM"),
        (Evidence(code=3, asked=2), "stopped", "asked to stop by SIGINT"),
        (Evidence(signal=11), "crash", "killed by SIGSEGV"),
        (Evidence(code=139), "crash", "exit code 139"),
        (Evidence(signal=6, log=("free(): invalid pointer",)), "crash", "free(): invalid pointer"),
        (Evidence(signal=64), "crash", "signal 64"),
        (Evidence(signal=9, forced=Forced("hang", "no step for 9 s")), "hang", "no step for 9 s"),
        (Evidence(signal=9, asked=2, forced=Forced("stopped", "a second")), "stopped", "a second"),
    ],
)
def test_an_end_without_an_exception(evidence: Evidence, cause: str, says: str) -> None:
    verdict = classify(evidence)
    assert verdict.cause == cause
    assert says in verdict.sentence


def test_an_end_that_nobody_noted_is_told_by_whose_boot_it_was() -> None:
    here = Holder(host="a", boot="b1/4026", pid=1, started=1.0)

    def lost(host: str, boot: str) -> Verdict:
        return unseen(Holder(host=host, boot=boot, pid=7, started=1.0), here)

    assert lost("a", "b0/4026").cause == "node_lost"
    assert "a was started again while it ran" in lost("a", "b0/4026").sentence
    assert lost("z", "b9/1").sentence == "nobody saw it end on z"
    assert lost("a", "b1/4026").fingerprint == "crash:supervisor"
    assert "pid 7" in lost("a", "b1/4026").sentence


def test_the_oom_killer_of_its_cgroup_overrules_what_the_survivors_said() -> None:
    lost = raised("RuntimeError", "DataLoader worker (pid 7) is killed by signal: Killed.")
    for evidence in (Evidence(signal=9), Evidence(code=1, raised=(lost,))):
        memory = Memory(kills=1, limit=256 << 20, peak=250 << 20)
        verdict = classify(msgspec_replace(evidence, memory=memory))
        assert verdict.cause == "out_of_memory"
        assert "OOM killer ended 1 process in its cgroup (limit 256 MiB)" in verdict.sentence


def test_the_machines_count_alone_is_a_weaker_sign_and_said_to_be() -> None:
    memory = Memory(kills=None, elsewhere=2)
    killed = classify(Evidence(signal=9, memory=memory))
    assert killed.cause == "out_of_memory"
    assert "of the whole machine, so this is likely, not certain" in killed.sentence
    # It says nothing of a command that ended otherwise.
    assert classify(Evidence(code=1, memory=memory)).cause == "code"
    assert classify(Evidence(signal=11, memory=memory)).cause == "crash"
    # Nor where its own cgroup counts, and counted none: others were killed.
    others = Memory(kills=0, elsewhere=2)
    assert classify(Evidence(signal=9, memory=others)).cause == "crash"


def test_a_kill_in_its_cgroup_is_its_own_only_where_something_of_it_was_killed() -> None:
    memory = Memory(kills=1)
    peer = raised("RuntimeError", "Connection closed by peer", rank=0)
    own = raised("ValueError", "bad", rank=0)

    def cause(**more: Any) -> str:
        return classify(Evidence(memory=memory, **more)).cause

    assert cause(code=3, infinite="loss is nan", silent=(0,)) == "numeric"
    assert cause(code=1, raised=(own,), silent=(1,)) == "code"
    assert cause(code=1, raised=(peer,), silent=(1,)) == "out_of_memory"
    assert cause(code=1, silent=(0,)) == "out_of_memory"  # torchrun's, of a worker without a word


def test_an_unexplained_kill_never_comes_alone() -> None:
    memory = Memory(kills=0, elsewhere=0, peak=1 << 30, total=24 << 30)
    said = classify(Evidence(signal=9, memory=memory, step=31)).sentence
    assert said == (
        "killed by SIGKILL; nobody here asked for it, the kernel's OOM killer ended nothing, it "
        "had completed step 31, its largest process held up to 1.0 GiB of 24 GiB"
    )
    assert "cannot be read here" in classify(Evidence(signal=9)).sentence


def test_of_several_ranks_the_one_that_began_it_counts() -> None:
    peer = raised("RuntimeError", "Connection closed by peer", rank=0, at=1.0)
    later = raised("KeyError", "'x'", rank=2, at=9.0)
    first = raised("ValueError", "bad", rank=1, at=5.0)
    verdict = classify(Evidence(code=1, raised=(peer, later, first)))
    assert verdict.cause == "code"
    assert verdict.sentence.startswith("ValueError: bad on rank 1, in train (/home/me/train.py:31)")


def test_a_lost_peer_is_named() -> None:
    peer = raised("RuntimeError", "Connection closed by peer", rank=0)
    verdict = classify(Evidence(code=1, raised=(peer,), silent=(1,)))
    assert verdict.cause == "communication"
    assert "rank 1 ended without a word" in verdict.sentence


def test_the_users_own_patterns_come_before_the_table() -> None:
    patterns = [
        Pattern("data", error=r"ValueError: tokens? .* missing"),
        Pattern("node_lost", log=r"Xid 79"),
    ]
    assert of("ValueError", "token 7 missing").cause == "code"
    error = Evidence(code=1, raised=(raised("ValueError", "token 7 missing"),))
    assert classify(error, patterns).cause == "data"
    fell = Evidence(signal=9, memory=Memory(kills=3), log=("ok", "NVRM: Xid 79, fell off the bus"))
    verdict = classify(fell, patterns)
    assert verdict.cause == "node_lost"
    assert "NVRM: Xid 79" in verdict.sentence
    # Not before what we did ourselves.
    assert classify(msgspec_replace(fell, asked=2), patterns).cause == "stopped"


@pytest.mark.parametrize(
    ("line", "cause"),
    [
        ("torch.OutOfMemoryError: CUDA out of memory.", "out_of_memory"),
        ("OSError: [Errno 28] No space left on device", "storage"),
        ("torch.distributed.DistBackendError: NCCL error", "communication"),
        ("    traceback : Signal 11 (SIGSEGV) received by PID 4", "crash"),
        ("ModuleNotFoundError: No module named 'x'", "code"),
        ("[rank1]: ValueError: bad", "code"),
        ("[rank0]: RuntimeError: [pair.cc:534] Connection closed by peer", "communication"),
        ("TimeoutError: the store", "communication"),
        ("MemoryError", "out_of_memory"),
    ],
)
def test_output_is_asked_where_no_process_said_a_word(line: str, cause: str) -> None:
    verdict = classify(Evidence(code=1, log=("Traceback (most recent call last):", line, "")))
    assert verdict.cause == cause
    assert line.strip() in verdict.sentence
    said = Evidence(code=1, log=(line,), raised=(raised("KeyError", "'x'"),))
    assert classify(said).cause == "code"


def test_of_several_tracebacks_in_the_output_the_last_that_lost_no_peer_counts() -> None:
    log = ("[rank1]: KeyError: 'x'", "", "[rank0]: RuntimeError: Connection closed by peer", "bye")
    verdict = classify(Evidence(code=1, log=log))
    assert (verdict.cause, verdict.error) == ("code", "KeyError: 'x'")
    # A killed process had no say in what its output ends with.
    assert classify(Evidence(signal=9, log=log)).cause == "crash"


def test_the_same_end_has_the_same_fingerprint_whatever_varies_in_its_text() -> None:
    def fingerprint(message: str, **more: Any) -> str:
        return of("ValueError", message, **more).fingerprint

    assert fingerprint("shape (4, 3)") == fingerprint("shape (9, 3)", step=40, rank=3)
    assert fingerprint("x") != fingerprint("x", line=32)
    assert fingerprint("at 0x7ffe12", file="") == fingerprint("at 0x7ffe99", file="")
    assert classify(Evidence(signal=11)).fingerprint == "crash:SIGSEGV"
    assert classify(Evidence(code=9)).fingerprint == "code:exit 9"


def test_a_workers_traceback_inside_a_message_is_one_line_for_people() -> None:
    message = (
        "Caught ValueError in DataLoader worker process 0.\nOriginal Traceback (most recent call "
        'last):\n  File "x.py", line 3, in __getitem__\n    raise ValueError(1)\n'
        "ValueError: sample 17 is bad\n"
    )
    said = of("ValueError", message).sentence
    assert "\n" not in said
    assert "in DataLoader worker process 0: ValueError: sample 17 is bad" in said
    assert len(of("ValueError", "x" * 5000).sentence) < 400


def test_every_rule_names_a_known_class_and_compiles() -> None:
    for rule in RULES:
        assert rule.cause in CAUSES | OTHER
        re.compile(rule.pattern)
    assert {rule.cause for rule in RULES} | {"hang", "preempted", "node_lost"} >= set(CAUSES)


texts = st.text(st.characters(codec="utf-8"), max_size=40)
exceptions = st.builds(
    ExceptionRaised, kind=texts, message=texts, file=texts, step=st.integers(0, 9)
)
evidences = st.builds(
    Evidence,
    code=st.none() | st.integers(0, 255),
    signal=st.none() | st.integers(1, 64),
    asked=st.none() | st.integers(1, 15),
    raised=st.lists(st.builds(Raised, st.none() | st.integers(0, 7), exceptions), max_size=3).map(
        tuple
    ),
    log=st.lists(texts, max_size=3).map(tuple),
    infinite=texts,
)


@given(evidences)
def test_whatever_was_found_there_is_a_class_a_sentence_and_a_fingerprint(
    evidence: Evidence,
) -> None:
    verdict = classify(evidence)
    assert verdict.cause in CAUSES | OTHER
    assert verdict.fingerprint.startswith(verdict.cause)
    assert verdict.sentence
    assert classify(evidence) == verdict


def msgspec_replace(evidence: Evidence, **more: Any) -> Evidence:
    import msgspec

    return msgspec.structs.replace(evidence, **more)
