"""An S3 server (moto) in a process of its own, with buckets made when they are asked for."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from types import TracebackType

import obstore
from obstore.store import S3Store

REGION = "us-east-1"
_names = itertools.count()


class Buckets:
    """The server. `environ` is what a client needs to reach it."""

    def __enter__(self) -> Buckets:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.buckets"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        assert self._process.stdout
        self.environ = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self._process.stdout.readline().strip()}",
            "AWS_ACCESS_KEY_ID": "anybody",
            "AWS_SECRET_ACCESS_KEY": "anything",
            "AWS_REGION": REGION,
        }
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.close()
        self._process.wait(20)
        self._process.stdout.close()

    def make(self) -> str:
        """A new bucket's name."""
        import urllib.request

        name = f"bucket-{os.getpid()}-{next(_names)}"
        request = urllib.request.Request(f"{self.environ['AWS_ENDPOINT_URL']}/{name}", method="PUT")
        urllib.request.urlopen(request, timeout=20).close()
        return name

    def store(self, bucket: str) -> S3Store:
        return S3Store(
            bucket, endpoint=self.environ["AWS_ENDPOINT_URL"], region=REGION,
            access_key_id="anybody", secret_access_key="anything",
            client_options={"allow_http": True},
        )  # fmt: skip


def objects(store: object) -> dict[str, bytes]:
    return {
        item["path"]: bytes(obstore.get(store, item["path"]).bytes())
        for items in obstore.list(store)
        for item in items
    }


if __name__ == "__main__":
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    print(server.get_host_and_port()[1], flush=True)
    sys.stdin.read()
    server.stop()
