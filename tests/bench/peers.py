"""The others' ways to save a state, as benchmarks call them."""

from __future__ import annotations

import os
import shutil
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType


class AsyncSave:
    """`dcp.async_save`, staged through shared memory that is used again. Makes the process group
    that it needs; one at a time."""

    def __init__(self, folder: Path, kind: AsyncCheckpointerType) -> None:
        self._folder, self._kind, self._count = folder, kind, 0
        os.environ["MASTER_ADDR"] = "127.0.0.1"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            os.environ["MASTER_PORT"] = str(probe.getsockname()[1])
        dist.init_process_group("gloo", rank=0, world_size=1)
        device = torch.cuda.is_available()
        self._stager = DefaultStager(StagingOptions(device, True, device, device))
        # torch 2.11 lets the staged memory go behind each save, and then has none; later ones not.
        self._release = self._stager._state_dict_stager.close
        self._stager._state_dict_stager.close = lambda: None  # type: ignore[method-assign]
        self._answer: Any = None
        self._began = 0.0

    def begin(self, state: dict[str, Any]) -> float:
        """Returns the seconds until training may go on."""
        self._count += 1
        self._began = time.perf_counter()
        self._answer = dcp.async_save(
            state,
            checkpoint_id=self._folder / f"dcp-{self._count}",
            async_checkpointer_type=self._kind,
            async_stager=self._stager,
        )
        return time.perf_counter() - self._began

    def await_staged(self) -> None:
        """Until the state may change."""
        getattr(self._answer, "staging_completion", self._answer).result()

    @property
    def is_written(self) -> bool:
        done: Callable[[], bool] = getattr(self._answer, "upload_completion", self._answer).done
        return done()

    def await_written(self) -> float:
        """Returns the seconds since it began; then nothing is left of it."""
        getattr(self._answer, "upload_completion", self._answer).result()
        took = time.perf_counter() - self._began
        shutil.rmtree(self._folder / f"dcp-{self._count}")
        return took

    def close(self) -> None:
        self._release()
        self._stager.close()
        dist.destroy_process_group()


def torch_saved(state: Any, folder: Path) -> float:
    """`torch.save` and an fsync, in seconds."""
    path = folder / "peer.pt"
    began = time.perf_counter()
    with open(path, "wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    took = time.perf_counter() - began
    path.unlink()
    return took
