"""Votes and manifests: their bytes, their names, and when votes make a snapshot."""

from __future__ import annotations

import json

import msgspec
import pytest

from walrecover import manifest as votes
from walrecover.errors import Corrupt, UnsupportedVersion
from walrecover.manifest import FileAt, Manifest, Part, TensorAt

NAME = "step-00000007.a2-9f2c01d7"


def part(rank: int = 0, world: int = 2, **changes: object) -> Part:
    """A vote. Rank 0 wrote the tied weights under one key; rank 1 leaves them to it."""
    shard = f"{NAME}/rank-00000.safetensors"
    key = "weights" if rank == 0 else "tied"
    made = Part(
        run="a-run",
        step=7,
        end=False,
        attempt=2,
        nonce="9f2c01d7",
        rank=rank,
        world=world,
        base="blake3:base",
        position="blake3:position",
        files={
            f"{NAME}/rank-{rank:05d}.safetensors": FileAt(1000 + rank, "blake3:header"),
            f"{NAME}/rank-{rank:05d}.msgpack": FileAt(100, "blake3:plain"),
        },
        tensors={
            "weights": TensorAt(shard, "weights", "blake3:w", "float32", (2, 3)),
            "tied": TensorAt(shard, key, "blake3:w", "float32", (2, 3)),
        },
        replicated={"weights": "blake3:w", "tied": "blake3:w"},
        writer=f"rank-{rank}",
        lsn=12,
        chain="00" * 16,
    )
    return msgspec.structs.replace(made, **changes)  # type: ignore[arg-type]


def sealed(*parts: Part) -> Manifest:
    return votes.seal_manifest(parts, ["blake3:part"] * len(parts))


def roundtrip(manifest: Manifest) -> Manifest:
    return votes.decode_manifest(votes.encode_manifest(manifest))


# --- bytes --------------------------------------------------------------------------------------


def test_a_vote_comes_back_as_it_was() -> None:
    assert votes.decode_part(votes.encode_part(part())) == part()


def test_a_manifest_comes_back_as_it_was() -> None:
    made = sealed(part(0), part(1))
    assert roundtrip(made) == made
    assert made.name == NAME
    assert made.bytes() == 1000 + 1001 + 2 * 100
    assert len(made.files()) == 4


def test_no_flipped_bit_of_a_vote_passes() -> None:
    """A vote is read once, before anything names its digest: it must carry its own."""
    data = votes.encode_part(part())
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        try:
            assert votes.decode_part(bytes(flipped)) == part()
        except (Corrupt, UnsupportedVersion) as error:
            assert str(error).startswith("vote: ")


def test_a_newer_format_is_not_damage() -> None:
    with pytest.raises(UnsupportedVersion, match="vote: format 9"):
        votes.decode_part(b'{"format": 9, "digest": "", "body": {}}')
    with pytest.raises(UnsupportedVersion, match="manifest: format 9"):
        votes.decode_manifest(b'{"format": 9}')


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b"\xff", b"[" * 400_000, b'{"format": 1}'])
def test_what_is_no_manifest_is_corrupt(data: bytes) -> None:
    with pytest.raises((Corrupt, UnsupportedVersion)):
        votes.decode_manifest(data)
    with pytest.raises(Corrupt):
        votes.decode_part(data)


# --- names --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, parsed",
    [
        (NAME, (7, False, "a2-9f2c01d7")),
        ("step-00000007-end.a2-9f2c01d7", (7, True, "a2-9f2c01d7")),
        ("step-123456789.a2-0", (123456789, False, "a2-0")),
        ("step-7.a2-9f2c01d7", None),
        ("step-٠٠٠٠٠٠٠٧.a2-9f2c01d7", None),
        (f"{NAME}/", None),
        (f"{NAME}\n", None),
        (f".{NAME}", None),
        ("step-00000007.a2", None),
    ],
)
def test_a_snapshots_name(name: str, parsed: tuple[int, bool, str] | None) -> None:
    assert votes.parse_snapshot_name(name) == parsed


@pytest.mark.parametrize(
    "name, good",
    [("gpt-1a2b", True), ("A.b_c-1", True), ("", False), (".hidden", False), ("-x", False),
     ("a/b", False), ("..", False), ("a" * 128, True), ("a" * 129, False), ("a\n", False)],
)  # fmt: skip
def test_a_runs_name(name: str, good: bool) -> None:
    assert votes.is_run_name(name) is good


HOSTILE = [
    "/etc/passwd",
    f"../{NAME}/rank-00000.msgpack",
    f"{NAME}/../../../etc/passwd",
    f"{NAME}/rank-00000.part",
    f"{NAME}/manifest.json",
    f"{NAME}/rank-0.msgpack",
    f"{NAME}/rank-00000.msgpack\0",
    f"{NAME}/rank-00000.msgpack\n",
    "",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_vote_names_only_shards(name: str) -> None:
    with pytest.raises(Corrupt, match="is not a shard's name"):
        votes.decode_part(votes.encode_part(part(files={name: FileAt(1, "")})))
    made = sealed(part(world=1, files={name: FileAt(1, "")}))
    with pytest.raises(Corrupt, match="is not a shard's name"):
        roundtrip(made)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_tensor_lies_only_in_shards(name: str) -> None:
    with pytest.raises(Corrupt, match="has a false address"):
        votes.decode_part(
            votes.encode_part(part(tensors={"x": TensorAt(name, "x", "", "uint8", (1,))}))
        )


def test_a_vote_of_nonsense_is_refused() -> None:
    with pytest.raises(Corrupt, match="is not a run's name"):
        votes.decode_part(votes.encode_part(part(run="../x")))
    with pytest.raises(Corrupt, match="has -1 bytes"):
        votes.decode_part(
            votes.encode_part(part(files={f"{NAME}/rank-00000.msgpack": FileAt(-1, "")}))
        )
    shape = TensorAt(f"{NAME}/rank-00000.safetensors", "x", "", "uint8", (-1,))
    with pytest.raises(Corrupt, match="has a false address"):
        votes.decode_part(votes.encode_part(part(tensors={"x": shape})))


# --- agreement ----------------------------------------------------------------------------------


def test_votes_that_agree() -> None:
    assert votes.disagreement([part(0), part(1)]) is None
    assert votes.disagreement([part(world=1)]) is None


@pytest.mark.parametrize("field", ["run", "end", "step", "attempt", "nonce", "world", "base"])
def test_votes_that_differ_name_what_differs(field: str) -> None:
    now = getattr(part(), field)
    other = not now if isinstance(now, bool) else now + (1 if isinstance(now, int) else "x")
    found = votes.disagreement([part(0), part(1, **{field: other})])
    assert found is not None and found.startswith(f"{field} differs: rank 0 has")


def test_ranks_at_different_data_positions_do_not_agree() -> None:
    found = votes.disagreement([part(0), part(1, position="blake3:elsewhere")])
    assert found == "rank 1 stands at another data position than rank 0"


def test_replicated_tensors_that_differ_are_named() -> None:
    names = {f"layer{n}": "blake3:x" for n in range(9)}
    found = votes.disagreement([part(0, replicated=names), part(1, replicated={})])
    assert found is not None and "layer0, layer1, layer2, layer3, layer4 …" in found
    found = votes.disagreement([part(0), part(1, replicated={"weights": "blake3:w", "tied": "?"})])
    assert found is not None and found.endswith("differs from rank 0's in tied")


@pytest.mark.parametrize(
    "parts", [[], [part(0)], [part(1), part(0)], [part(0), part(0)], [part(0), part(1), part(2)]]
)
def test_a_snapshot_needs_one_vote_of_every_rank(parts: list[Part]) -> None:
    assert votes.disagreement(parts)


def test_a_false_world_costs_nothing() -> None:
    assert votes.disagreement([part(world=10**15)]) is not None
    with pytest.raises(Corrupt):
        roundtrip(sealed(part(world=10**15)))


# --- manifests ----------------------------------------------------------------------------------


def test_the_manifest_knows_where_rank_0_put_what_all_hold() -> None:
    """Rank 1 cannot know under which of two tied names rank 0 wrote."""
    made = sealed(part(0), part(1))
    assert made.parts[1].tensors["tied"].key == "weights"
    assert made.parts[0].tensors == made.parts[1].tensors


def test_what_a_rank_wrote_itself_stays_where_it_is() -> None:
    own = TensorAt(f"{NAME}/rank-00001.safetensors", "own", "blake3:1", "uint8", (4,))
    zeroth = msgspec.structs.replace(own, file=f"{NAME}/rank-00000.safetensors")
    made = sealed(
        part(0, tensors=part(0).tensors | {"own": zeroth}),
        part(1, tensors=part(1).tensors | {"own": own}),
    )
    assert made.parts[1].tensors["own"] == own


def test_a_manifest_of_votes_for_another_snapshot_is_corrupt() -> None:
    made = msgspec.structs.replace(sealed(part(0), part(1)), step=8)
    with pytest.raises(Corrupt, match="its votes are for another snapshot"):
        roundtrip(made)


def test_a_manifest_of_votes_that_disagree_is_corrupt() -> None:
    with pytest.raises(Corrupt, match="base differs"):
        roundtrip(sealed(part(0), part(1, base="blake3:other")))


def test_one_file_has_one_description() -> None:
    twice = part(1, files=part(0).files | {f"{NAME}/rank-00000.msgpack": FileAt(99, "")})
    with pytest.raises(Corrupt, match="two descriptions of"):
        roundtrip(sealed(part(0), twice))


def test_a_tensor_lies_in_a_file_that_somebody_wrote() -> None:
    lost = TensorAt(f"{NAME}/rank-00009.safetensors", "x", "", "uint8", (1,))
    with pytest.raises(Corrupt, match="which no vote lists"):
        roundtrip(sealed(part(world=1, tensors={"x": lost}, replicated={})))


def test_a_manifest_is_json_that_people_can_read() -> None:
    read = json.loads(votes.encode_manifest(sealed(part(0), part(1))))
    assert (read["step"], read["attempt"], len(read["parts"])) == (7, 2, 2)
