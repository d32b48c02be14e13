"""The bytes of every event type, fixed: what an older release wrote stays readable.

golden_events.json holds, for every type, the bytes as hex and what the independent `msgpack`
package decodes them to (byte strings as {"hex": …}). Never change an entry: a type that has been
released keeps its bytes, and a new optional field gets a new entry.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgpack
import pytest

from walrecover import events as ev
from walrecover.consumed import Consumed
from walrecover.entries import Plan, Rejected, SnapshotRef

GOLDEN_FILE = Path(__file__).parent / "golden_events.json"

_BASE = SnapshotRef(step=1200, attempt=3, nonce="9f2c01d7", manifest="ab" * 32, end=True)

# One sparse and, where a type has optional fields, one full example of each.
EXAMPLES: dict[str, ev.Event] = {
    "AttemptBegun": ev.AttemptBegun(run="char_gpt-1f3a", attempt=3, nonce="9f2c", writer="rank-0"),
    "AttemptBegun full": ev.AttemptBegun(
        at=1750000000.25,
        run="char_gpt-1f3a",
        attempt=3,
        nonce="9f2c01d7",
        writer="rank-1",
        rank=1,
        world=2,
        host="node-a",
        pid=4711,
        code=ev.Code(
            argv=("train.py", "--lr", "3e-4"),
            commit="0123456789abcdef",
            dirty="fedc",
            python="3.11.9",
            libraries={"torch": "2.13.0"},
            threads=1,
            cpu="AVX512",
            world=2,
            environment={"OMP_NUM_THREADS": "1"},
        ),
    ),
    "AttemptBegun of inexact code": ev.AttemptBegun(
        run="char_gpt-1f3a",
        attempt=3,
        nonce="9f2c",
        writer="rank-0",
        code=ev.Code(inexact=("cudnn.benchmark is on",)),
    ),
    "StepCompleted": ev.StepCompleted(step=1),
    "StepCompleted full": ev.StepCompleted(
        at=1750000001.5,
        step=70000,
        epoch=3,
        position=(3, 17),
        lr=(0.0003, 1e-05),
        scalars={"loss": 2.5, "largest": 1.7976931348623157e308},
        rng={"torch": bytes(range(16)), "python": b"\xff" * 16},
        consumed=(
            Consumed(0),
            Consumed(1, 3, ((0, 32),)),
            Consumed(
                source=2,
                epoch=3,
                ranges=((0, 32), (4294967296, 4294967328)),
                samples=b"\x01" * 16,
                padded=((4294967328, 4294967330),),
                skipped=((32, 64),),
            ),
        ),
        batch=b"\x02" * 16,
        state=b"\x03" * 16,
        grad_norm=0.1,
    ),
    "DataOpened": ev.DataOpened(source=0),
    "DataOpened full": ev.DataOpened(
        source=1,
        loop=(0, 0),
        kind="global",
        length=4294967328,
        batch=32,
        seed=-1,
        digest=b"\x04" * 16,
        dropped=5,
        keyed=True,
        world=2,
    ),
    "PassEnded": ev.PassEnded(step=1, source=0),
    "PassEnded full": ev.PassEnded(step=70000, source=1, epoch=3, broken=True, left=((32, 40),)),
    "ScalarsArrived": ev.ScalarsArrived(step=7, scalars={"loss": -0.0}),
    "ShardsWritten": ev.ShardsWritten(step=7, files=()),
    "ShardsWritten full": ev.ShardsWritten(
        step=7,
        files=(ev.WrittenFile("rank-00000.safetensors", 430000000, "cd" * 32),),
        end=True,
        seconds=1.5,
    ),
    "ShardsWritten with its state": ev.ShardsWritten(
        step=7, files=(), state={"model": b"\x06" * 16}
    ),
    "SnapshotCommitted": ev.SnapshotCommitted(step=7, manifest="ab" * 32),
    "SnapshotCommitted full": ev.SnapshotCommitted(step=7, manifest="ab" * 32, end=True),
    "SnapshotVerified": ev.SnapshotVerified(step=7, manifest="ab" * 32),
    "SnapshotVerified full": ev.SnapshotVerified(step=7, manifest="ab" * 32, end=True),
    "SnapshotAbandoned": ev.SnapshotAbandoned(step=7, reason="the disk is full"),
    "SnapshotAbandoned full": ev.SnapshotAbandoned(step=7, reason="a rank is gone", end=True),
    "SnapshotsRetired": ev.SnapshotsRetired(names=("step-00000007.a3-9f2c01d7",)),
    "PaceSet": ev.PaceSet(from_step=128, every=100),
    "PaceSet full": ev.PaceSet(
        at=1750000013.5, from_step=128, every=100, seconds=24.5, cost=0.25, between=1200.0
    ),
    "ArenaRefused": ev.ArenaRefused(reason="no memory can be shared: out of memory"),
    "ArenaRefused full": ev.ArenaRefused(at=1750000014.25, reason="too little memory"),
    "LoopStalled": ev.LoopStalled(step=1200, seconds=0.25),
    "LoopStalled full": ev.LoopStalled(
        at=1750000014.5, step=1200, seconds=0.25, end=True, commit=True
    ),
    "RecoveryPlanned": ev.RecoveryPlanned(plan=Plan()),
    "RecoveryPlanned full": ev.RecoveryPlanned(
        plan=Plan(
            base=_BASE,
            rejected=(Rejected(1300, 3, "ef" * 32, "a shard is missing", confirmed=False),),
            fresh=True,
        ),
        last_step=1342,
        lost_steps=142,
        losses=("rank-1 of attempt 3: torn",),
        seconds=0.5,
    ),
    "PlanFailed": ev.PlanFailed(reason="no such file"),
    "StateRepaired": ev.StateRepaired(
        step=1200, names=("optimizer", "model"), from_rank=0, reason="optimizer: 5 steps on rank 0"
    ),
    "ConfigurationChanged": ev.ConfigurationChanged(differences=("threads: 1, then 2",)),
    "Resumed": ev.Resumed(step=1200),
    "Resumed full": ev.Resumed(step=1200, seconds=0.25),
    "PlaceReached": ev.PlaceReached(step=1200),
    "ResumeVerified": ev.ResumeVerified(base=1200, tier="exact"),
    "ResumeVerified full": ev.ResumeVerified(
        at=1750000004.5,
        base=1200,
        tier="tolerant",
        from_step=1201,
        to_step=1342,
        restored=b"\x05" * 16,
        states=(1250, 1300),
        why=("threads was 2, is 1",),
        bound=0.01,
    ),
    "ResumeDiverged": ev.ResumeDiverged(step=1201, what="loss", before="2.5", after="2.75"),
    "ResumeDiverged full": ev.ResumeDiverged(
        at=1750000005.5,
        step=1201,
        what="the learning rate",
        before="0.0003",
        after="0.001",
        attempt=3,
        tier="tolerant",
        why=("threads was 2, is 1",),
        bound=0.01,
    ),
    "ResumeUnproven": ev.ResumeUnproven(reason="the stream of the attempt before is gone"),
    "Resumed by another number of ranks": ev.Resumed(
        step=1200,
        seconds=0.25,
        saved_by=2,
        source=1,
        drawn_anew={"torch": bytes(range(16))},
    ),
    "Resumed from memory": ev.Resumed(step=1200, seconds=0.25, arena=430_000_000, disk=4096),
    "Resumed from disk": ev.Resumed(
        step=1200, disk=430_000_000, refused="its saver ended before it was digested"
    ),
    "StopAnnounced": ev.StopAnnounced(step=1202, signal=15),
    "RunStopped": ev.RunStopped(step=1202),
    "RunStopped full": ev.RunStopped(step=1202, signal=15),
    "RunFinished": ev.RunFinished(step=5000),
    "WorkerStarted": ev.WorkerStarted(pid=4711),
    "WorkerStarted full": ev.WorkerStarted(pid=4711, argv=("python", "train.py")),
    "WorkerStarted standby": ev.WorkerStarted(pid=4711, standby="parked"),
    "ModulesImported": ev.ModulesImported(names=("torch", "torch._dynamo")),
    "ModulesImported full": ev.ModulesImported(
        names=("torch",), environment=("OMP_NUM_THREADS", "HF_HOME")
    ),
    "WorkerExited": ev.WorkerExited(pid=4711),
    "WorkerExited full": ev.WorkerExited(
        pid=4711,
        code=1,
        signal=9,
        cause="out_of_memory",
        evidence="oom_kill 1",
        seconds=12.5,
        fingerprint="out_of_memory",
        artefacts=("attempts/a3-9f2c01d7/stacks-rank-0.txt",),
    ),
    "WorkerExited of the same again": ev.WorkerExited(pid=4711, cause="code", step=70000),
    "WorkerExited that was seen": ev.WorkerExited(pid=4711, cause="crash", seen=1750000012.25),
    "SalvageTried": ev.SalvageTried(step=1234, saved=True),
    "SalvageTried full": ev.SalvageTried(
        at=1750000012.5, step=1234, saved=False, reason="AdamW.step() had begun", stands=1200
    ),
    "ExceptionRaised": ev.ExceptionRaised(kind="builtins.KeyError"),
    "ExceptionRaised full": ev.ExceptionRaised(
        kind="torch.cuda.OutOfMemoryError",
        message="CUDA out of memory",
        bases=("builtins.RuntimeError", "builtins.Exception"),
        file="train.py",
        line=31,
        function="main",
        step=70000,
        fetching=True,
    ),
    "RestartDecided": ev.RestartDecided(action="restart", delay=0.5, reason="progress was made"),
    "RestartDecided full": ev.RestartDecided(
        action="restart", delay=0.0, reason="smaller", environment={"MICRO_BATCH": "16"}
    ),
    "FileAdopted": ev.FileAdopted(path="out/model.pt", number=7, bytes=430000000, digest="cd" * 32),
    "FileAdopted full": ev.FileAdopted(
        path="out/model.pt",
        number=7,
        bytes=430000000,
        digest="cd" * 32,
        assurance="torch: every member's CRC",
        how="copy",
        step=1200,
        seconds=1.5,
    ),
    "FileRejected": ev.FileRejected(path="out/model.pt", reason="ends too early"),
    "FileRejected full": ev.FileRejected(
        path="out/model.pt", reason="ends too early", bytes=4096, aside="out/model.pt.torn-1"
    ),
    "FileRestored": ev.FileRestored(path="out/model.pt", number=7, digest="cd" * 32),
    "FileRestored full": ev.FileRestored(
        path="out/model.pt",
        number=7,
        digest="cd" * 32,
        reason="ends too early",
        aside="out/model.pt.torn-1",
    ),
    "PhasesMeasured": ev.PhasesMeasured(phases={}),
    "PhasesMeasured full": ev.PhasesMeasured(
        at=1750000002.5,
        phases={"step": ev.PhaseTimes(count=70000, median=0.25, longest=9.5, second=9.0)},
    ),
    "HangDetected": ev.HangDetected(phase="start-up", seconds=3601.0, limit=3600.0),
    "HangDetected full": ev.HangDetected(
        at=1750000003.5,
        phase="step",
        seconds=612.5,
        limit=600.0,
        rank=1,
        step=70000,
        reason="rank 1 made no step for 612 s after step 70000",
        artefacts=("attempts/a3-9f2c01d7/rank-00001.stacks",),
    ),
}

GOLDEN: dict[str, dict[str, Any]] = json.loads(GOLDEN_FILE.read_text())


def _plain(value: object) -> object:
    """What `msgpack` decoded, as JSON can hold it."""
    if isinstance(value, bytes):
        return {"hex": value.hex()}
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value


@pytest.mark.parametrize("kind", [kind.__name__ for kind in ev.EVENT_TYPES])
def test_every_type_has_golden_bytes(kind: str) -> None:
    assert kind in GOLDEN, f"{kind} has no entry in {GOLDEN_FILE.name}"
    assert any(name.split()[0] == kind for name in EXAMPLES)


def test_every_field_is_in_some_golden_bytes() -> None:
    for kind in ev.EVENT_TYPES:
        written = {
            key for name in GOLDEN if name.split()[0] == kind.__name__ for key in _keys(name)
        }
        assert {*kind.__struct_fields__, "type"} - written <= {"at"}, kind.__name__
    assert "at" in _keys("StepCompleted full")


def _keys(name: str) -> set[str]:
    return set(GOLDEN[name]["decoded"])


@pytest.mark.parametrize("name", sorted(GOLDEN))
def test_todays_encoder_writes_the_golden_bytes(name: str) -> None:
    assert ev.encode(EXAMPLES[name]).hex() == GOLDEN[name]["hex"]


@pytest.mark.parametrize("name", sorted(GOLDEN))
def test_golden_bytes_decode_to_the_event(name: str) -> None:
    assert ev.decode(bytes.fromhex(GOLDEN[name]["hex"])) == EXAMPLES[name]


@pytest.mark.parametrize("name", sorted(GOLDEN))
def test_an_independent_decoder_reads_the_golden_bytes(name: str) -> None:
    decoded = msgpack.unpackb(bytes.fromhex(GOLDEN[name]["hex"]))
    assert next(iter(decoded.items())) == ("type", name.split()[0])
    assert _plain(decoded) == GOLDEN[name]["decoded"]


def test_no_golden_bytes_without_an_example() -> None:
    assert set(GOLDEN) == set(EXAMPLES)
