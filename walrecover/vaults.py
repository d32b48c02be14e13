"""A vault: a directory or a bucket that holds copies of runs, as objects by name.

Owns the requests to it, and that a directory's objects are durable. obstore does the work. What
objects there are, and in which order, is the caller's.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from blake3 import blake3

from walrecover.errors import BadInput, Corrupt, StorageFailed
from walrecover.failpoints import failpoint
from walrecover.files import make_directory, storage, sync_directory, sync_file

PIECE_BYTES = 4 << 20
SCHEME = "s3://"


class Vault:
    """An open vault. Every method raises StorageFailed where the storage refuses."""

    def __init__(self, where: str) -> None:
        """`where`: a directory, made if it is not there, or `s3://bucket/prefix`. Raises BadInput,
        StorageFailed."""
        self.where = where.rstrip("/") or where
        self._folder: Path | None = None
        self._api, self._store = _obstore(), None
        with self._request("cannot open the vault"):
            if where.startswith(SCHEME):
                self._store = _bucket(where)
            else:
                self._folder = Path(where).absolute()
                make_directory(self._folder)
                self._store = self._api.store.LocalStore(self._folder)

    def sizes(self, prefix: str) -> dict[str, int]:
        """The objects below a prefix, and their bytes."""
        with self._request("cannot list the vault"):
            return {
                item["path"]: item["size"]
                for items in self._api.list(self._store, prefix=prefix)
                for item in items
            }

    def read(self, name: str, limit: int) -> bytes:
        """An object of at most `limit` bytes. Raises FileNotFoundError, Corrupt."""
        with self._request(f"cannot read {name}"):
            found = self._api.get(self._store, name)
            if found.meta["size"] > limit:
                raise Corrupt(f"{name} is larger than the {limit} bytes it may have")
            return bytes(found.bytes())

    def pieces(self, name: str) -> Iterator[bytes]:
        """An object piece by piece. Raises FileNotFoundError."""
        with self._request(f"cannot read {name}"):
            for piece in self._api.get(self._store, name).stream(min_chunk_size=PIECE_BYTES):
                yield bytes(piece)

    def digest(self, name: str) -> str:
        """blake3 of an object's bytes, read back. Raises FileNotFoundError."""
        hasher = blake3()
        for piece in self.pieces(name):
            hasher.update(piece)
        return hasher.hexdigest()

    def put(self, name: str, path: Path) -> None:
        """Send a file, over whatever has its name."""
        with self._request(f"cannot write {name}"):
            self._api.put(self._store, name, path)
            self._make_durable(name)

    def create(self, name: str, data: bytes) -> bool:
        """Create an object unless it exists; False where it does."""
        with self._request(f"cannot write {name}"):
            try:
                self._api.put(self._store, name, data, mode="create", use_multipart=False)
            except (self._api.exceptions.AlreadyExistsError, FileExistsError):
                return False
            self._make_durable(name)
            return True

    def delete(self, names: Iterable[str]) -> None:
        for name in names:
            with self._request(f"cannot delete {name}"), contextlib.suppress(FileNotFoundError):
                self._api.delete(self._store, name)

    def _make_durable(self, name: str) -> None:
        if self._folder is None:
            return
        path = self._folder / name
        sync_file(path)
        while path != self._folder:
            path = path.parent
            sync_directory(path)

    @contextlib.contextmanager
    def _request(self, what: str) -> Iterator[None]:
        try:
            with storage(f"{self.where}: {what}"):
                failpoint("vault.request")
                yield
        except self._api.exceptions.BaseError as error:
            reason = str(error).partition("\n")[0]
            raise StorageFailed(f"{self.where}: {what}: {reason}") from None
        failpoint("vault.answered")


def _obstore() -> Any:
    try:
        import obstore
        import obstore.exceptions
        import obstore.store
    except ImportError:
        raise BadInput(
            "a vault needs the package obstore: pip install 'walrecover[daemon]'"
        ) from None
    return obstore


def _bucket(where: str) -> Any:
    from datetime import timedelta

    from obstore.store import S3Store

    bucket, _, prefix = where.removeprefix(SCHEME).partition("/")
    if not bucket:
        raise BadInput(f"{where} names no bucket: give s3://bucket/prefix")
    return S3Store(
        bucket,
        prefix=prefix.strip("/") or None,
        client_options={"allow_http": True},
        retry_config={"max_retries": 5, "retry_timeout": timedelta(seconds=60)},
    )
