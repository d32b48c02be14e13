"""Who takes part: its script, its launcher, its versions, and the settings that are not defaults.

`walrecover`, `torch.save` and `dcp.async_save` run in this environment; the others in
build/race-venv, made by `make race`, with the same torch.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tests.bench.measure import as_installed

ROOT = Path(__file__).parents[3]
SCRIPTS = Path(__file__).parent / "scripts"
THEIRS = ROOT / "build" / "race-venv" / "bin" / "python"
OURS = Path(sys.executable)

RESTARTS = "1000"
"""What launchers allow: more than there are kills."""
MONITOR = ("--monitor-interval", "0.02")
SNAPSHOTS = "30s"
"""walrecover's pace to disk, beside what it keeps in memory."""


class Contender(NamedTuple):
    """`launch`: the command before the script, from the folder and the steps between two saves.
    `settings`: in words. `reference`: whose undisturbed run has the same bits; None: its own.
    `packages`: whose versions are told."""

    name: str
    script: str
    launch: Callable[[Path, Path, int], list[str]]
    settings: str
    packages: tuple[str, ...] = ("torch",)
    python: Path = OURS
    own_reference: bool = False
    environ: tuple[tuple[str, str], ...] = ()

    def command(self, folder: Path, every: int, task: dict[str, int]) -> list[str]:
        told = {**task, "every": every, "folder": folder}
        options = [word for name, value in told.items() for word in (f"--{name}", str(value))]
        return [*self.launch(self.python, folder, every), str(SCRIPTS / self.script), *options]

    def environment(self, bytecode: Path) -> dict[str, str]:
        quiet = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
        return {**as_installed(bytecode), **quiet, **dict(self.environ)}

    def missing(self) -> str | None:
        """Why it cannot run here."""
        if not self.python.exists():
            return f"no {self.python.relative_to(ROOT)}: `make race` makes it"
        absent = [name for name, version in self.versions().items() if version is None]
        return f"not installed: {', '.join(absent)}" if absent else None

    def versions(self) -> dict[str, str | None]:
        asked = (
            "import importlib.metadata as m, json, sys\n"
            "found = {d.metadata['Name'].lower(): d.version for d in m.distributions()}\n"
            "print(json.dumps({name: found.get(name.lower()) for name in sys.argv[1:]}))"
        )
        command = [str(self.python), "-c", asked, *self.packages]
        return json.loads(subprocess.run(command, check=True, capture_output=True).stdout)


def plainly(python: Path, folder: Path, every: int) -> list[str]:
    return [str(python)]


def torchrun(python: Path, folder: Path, every: int) -> list[str]:
    launcher = [str(python), "-m", "torch.distributed.run", "--standalone", *MONITOR]
    return [*launcher, "--nproc-per-node", "1", "--max-restarts", RESTARTS]


def ft_launcher(python: Path, folder: Path, every: int) -> list[str]:
    launcher = [str(python.with_name("ft_launcher")), "--standalone", *MONITOR]
    launcher += ["--nproc-per-node", "1", "--max-restarts", RESTARTS]
    return [*launcher, "--ignore-missing-fault-tol-cfg"]


def dlrover_run(python: Path, folder: Path, every: int) -> list[str]:
    node = [str(python), str(SCRIPTS / "dlrover_node.py")]
    return [*node, "--max_restarts", RESTARTS, "--monitor_interval", MONITOR[1]]


def walrecover(python: Path, folder: Path, every: int) -> list[str]:
    launcher = [str(python), "-m", "walrecover.cli", "run", "--dir", str(folder / "runs")]
    options = ["--every", SNAPSHOTS, "--memory-every", f"{every}steps", "--standby", "parked"]
    return [*launcher, *options, "--", str(python)]


TORCHRUN = f"torchrun --standalone, {' '.join(MONITOR)}"

BARE = Contender("bare", "bare.py", plainly, "the loop and nothing else; no kills")
CONTENDERS = (
    Contender(
        "torch.save",
        "saved.py",
        torchrun,
        f"{TORCHRUN}; torch.save beside and os.replace, no fsync; generators and place by hand",
    ),
    Contender(
        "dcp.async_save",
        "dcp.py",
        torchrun,
        f"{TORCHRUN}; AsyncCheckpointerType.PROCESS, DefaultStager on shared memory; generators "
        "and place by hand",
    ),
    Contender(
        "HF Trainer",
        "hf.py",
        torchrun,
        f"{TORCHRUN}; save_steps N, save_total_limit 2, resume_from_checkpoint of the newest whole "
        "one",
        packages=("transformers", "accelerate", "torch"),
        python=THEIRS,
        own_reference=True,
    ),
    Contender(
        "Lightning",
        "lightning.py",
        torchrun,
        f"{TORCHRUN}; ModelCheckpoint(every_n_train_steps=N, save_last=link), ckpt_path; "
        "torchdata's StatefulDataLoader, and a callback for the generator",
        packages=("pytorch-lightning", "torchdata", "torch"),
        python=THEIRS,
        own_reference=True,
    ),
    Contender(
        "ravex",
        "ravexed.py",
        torchrun,
        f"{TORCHRUN}; train_loop(checkpoint_every=N, delta=False, keep_last=2), backend moonclip",
        packages=("ravex", "moonclip", "torch"),
        python=THEIRS,
        own_reference=True,
    ),
    Contender(
        "nvidia-resiliency-ext",
        "nvrx.py",
        ft_launcher,
        f"ft_launcher --standalone, {' '.join(MONITOR)}, heartbeats; generators and place by hand",
        packages=("nvidia-resiliency-ext", "torch"),
        python=THEIRS,
    ),
    Contender(
        "dlrover",
        "dlrovered.py",
        dlrover_run,
        f"dlrover-run --nnodes 1 --monitor_interval {MONITOR[1]} with its own local master; "
        "DdpCheckpointer, StorageType.MEMORY; generators and place by hand",
        packages=("dlrover", "torch"),
        python=THEIRS,
    ),
    Contender(
        "walrecover",
        "ours.py",
        walrecover,
        f"walrecover run --standby parked --every {SNAPSHOTS} --memory-every N",
        packages=("walrecover", "torch"),
    ),
)


def named(name: str) -> Contender:
    return next(found for found in (BARE, *CONTENDERS) if found.name == name)


def names() -> list[str]:
    return [found.name for found in (BARE, *CONTENDERS)]
