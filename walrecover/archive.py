"""What an archive of a run says of itself: its statement, its sums, and which names it may hold.

Owns the text formats of specs/20-archive.md and the judgement over them. Everything that was read
from an archive is hostile until it was checked here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import msgspec

from walrecover.entries import is_run_name
from walrecover.errors import Corrupt, UnsupportedVersion
from walrecover.manifest import parse_snapshot_name

FORMAT = 1
STATEMENT, README, SUMS = "export.json", "README.md", "SHA256SUMS"
MAX_STATEMENT_BYTES = 1 << 20
MEMBER_BYTES = 4096
"""What a member takes at most beside its content: its headers and the rest of its last block."""

_ATTEMPT = r"a(?:0|[1-9][0-9]{0,9})-[0-9a-z]{1,32}"
_PLACES = re.compile(
    rf"""{re.escape(STATEMENT)} | {re.escape(README)} | {SUMS}
    | sequence/(?:[0-9]{{8}}|[1-9][0-9]{{8,}})\.json
    | snapshots/(?P<snapshot>[^/]+)/(?:manifest\.json|rank-[0-9]{{5,}}\.(?:safetensors|msgpack))
    | journal/{_ATTEMPT}/[A-Za-z0-9][A-Za-z0-9_.-]{{0,63}}/data\.mdb
    | adopted/(?:running|forgotten|records/[0-9]{{8,}}\.json|files/[0-9]{{8,}}-[^/]{{1,240}})
    | artefacts/{_ATTEMPT}/[^/.][^/]{{0,240}}""",
    re.VERBOSE | re.ASCII,
)
_SUM = re.compile(r"([0-9a-f]{64})  (.+)")


class LeftOut(msgspec.Struct, frozen=True):
    """Part of the run that did not verify when it was exported. `what`: snapshot, stream, file."""

    what: str
    name: str
    problem: str


class Statement(msgspec.Struct, frozen=True, omit_defaults=True):
    """`export.json`. `files`, `bytes`: of what follows it, without the sums. `parents`: runs whose
    journals, which are not in here, hold the beginning of this history."""

    format: int
    run: str
    version: str
    at: float
    entries: int
    files: int
    bytes: int
    left_out: tuple[LeftOut, ...] = ()
    parents: tuple[str, ...] = ()


class _Format(msgspec.Struct):
    format: int


def encode_statement(statement: Statement) -> bytes:
    return msgspec.json.format(msgspec.json.encode(statement), indent=1) + b"\n"


def decode_statement(data: bytes) -> Statement:
    """Raises Corrupt or UnsupportedVersion."""
    try:
        found = msgspec.json.decode(data, type=_Format).format
        if found != FORMAT:
            raise UnsupportedVersion(
                f"the archive has format {found}, and this release reads {FORMAT}"
            )
        statement = msgspec.json.decode(data, type=Statement)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Corrupt(f"{STATEMENT} cannot be read: {error}") from None
    if not is_run_name(statement.run):
        raise Corrupt(f"{STATEMENT} names a run {statement.run!r}, which no run can have")
    if min(statement.files, statement.bytes, statement.entries) < 0:
        raise Corrupt(f"{STATEMENT} states less than nothing")
    return statement


def require_place(run: str, member: str) -> str:
    """The path below the run's folder of a member's name. Raises Corrupt for a name that leads
    anywhere but to where a run has its files."""
    if member.startswith("/"):
        raise Corrupt(f"the member {member!r} is absolute")
    parts = member.split("/")
    if ".." in parts:
        raise Corrupt(f"the member {member!r} leads out of the archive")
    place = "/".join(parts[1:])
    if parts[0] != run or not is_plain(place):
        raise Corrupt(f"the member {member!r} has no place in run {run}")
    match = _PLACES.fullmatch(place)
    snapshot = match["snapshot"] if match else None
    if not match or (snapshot is not None and parse_snapshot_name(snapshot) is None):
        raise Corrupt(f"the member {member!r} has no place in run {run}")
    return place


def is_plain(name: str) -> bool:
    """Whether a path has only characters that a list of sums, and a terminal, take as they are."""
    return name.isprintable() and "\\" not in name and name.isascii()


def encode_sums(sums: Mapping[str, str]) -> bytes:
    """`SHA256SUMS`, as `sha256sum -c` reads it."""
    return "".join(f"{digest}  {name}\n" for name, digest in sums.items()).encode("ascii")


def decode_sums(data: bytes) -> dict[str, str]:
    """SHA-256 by path. Raises Corrupt."""
    sums: dict[str, str] = {}
    for line in data.decode("ascii", "replace").splitlines():
        match = _SUM.fullmatch(line)
        if match is None:
            raise Corrupt(f"{SUMS} has a line that is none of sha256sum's: {line[:80]!r}")
        if match[2] in sums:
            raise Corrupt(f"{SUMS} names {match[2]} twice")
        sums[match[2]] = match[1]
    return sums


def require_same(said: Mapping[str, str], found: Mapping[str, str]) -> None:
    """Hold the sums against what was unpacked. Raises Corrupt, naming the first difference."""
    for name in sorted(said.keys() - found.keys()):
        raise Corrupt(f"{name} is in {SUMS} and not in the archive")
    for name in sorted(found.keys() - said.keys()):
        raise Corrupt(f"{name} is in the archive and not in {SUMS}")
    for name, digest in found.items():
        if said[name] != digest:
            raise Corrupt(f"{name} has another sum than {SUMS} says")


def most_sums(statement: Statement) -> int:
    """How many bytes the sums may have at most."""
    return (statement.files + 1) * (64 + 2 + 512 + 1)


def most_bytes(statement: Statement) -> int:
    """How long the tar may be at most, from its beginning on."""
    members = (statement.files + 3) * MEMBER_BYTES
    end = 1 << 21  # tar rounds up to records
    return MAX_STATEMENT_BYTES + statement.bytes + most_sums(statement) + members + end


def readme(run: str, step: int | None, left_out: tuple[LeftOut, ...]) -> str:
    """The README inside. `step`: of the newest snapshot."""
    state = "It holds no snapshot yet." if step is None else f"Its newest snapshot is step {step}."
    lacking = "".join(f"- {one.what} {one.name}: {one.problem}\n" for one in left_out)
    return f"""# Run {run}

A training run, exported by walrecover (`walrecover export`). {state}

Check it, with nothing of walrecover:

    sha256sum -c {SUMS}

Bring it back, checked, and go on with the training:

    walrecover import FILE.tar.zst --name {run}
    walrecover run --name {run} -- python train.py

The tensors of a snapshot are in `snapshots/step-*/rank-*.safetensors`, which any safetensors tool
opens. `snapshots/step-*/manifest.json` says which file holds which tensor; `sequence/` which
snapshots exist.
`journal/` holds what happened at every step, as LMDB environments.
""" + (f"\nWhat did not verify and was left out:\n\n{lacking}" if lacking else "")
