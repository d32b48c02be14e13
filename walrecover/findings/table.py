"""Every check of `doctor`: what follows where it fails, and what to do.

Owns the texts, and which of the checks come before a first attempt; specs/09-doctor.md shows this
table, and a test holds the two together. Whether a check fails is judged elsewhere.
"""

from __future__ import annotations

from typing import NamedTuple

OK, NOTE, WARNING, FAILURE = "ok", "note", "warning", "failure"
LEVELS = (OK, NOTE, WARNING, FAILURE)

SAYS, STOPS = "says", "stops"
"""What a preflight does with a warning or failure: prints it; or, of a failure, ends the run."""


class Check(NamedTuple):
    """`preflight`: "" where the check belongs to `doctor` alone."""

    consequence: str
    remedy: str
    preflight: str = ""


CHECKS = {
    "command": Check(
        "the run ends with 126 or 127 before anything is written",
        "mend the command after --; a run is named with --name",
    ),
    "directory": Check(
        "the run cannot begin",
        "move away what is in its place, or take another directory (--dir, --journal-dir)",
        STOPS,
    ),
    "read-only": Check(
        "the run cannot begin; what is there can be read",
        "remount it for writing, or take another disk (--dir, --journal-dir)",
        STOPS,
    ),
    "permission": Check(
        "the run cannot begin, or cannot read what it must resume from",
        "run as its owner, have the owner give it to you with chown, or give another directory "
        "with --dir",
        STOPS,
    ),
    "write": Check(
        "the run cannot begin",
        "look into the kernel's log for the disk, or take another disk (--dir, --journal-dir)",
        STOPS,
    ),
    "full": Check(
        "the run cannot begin; what was committed stays loadable",
        "free space or raise the quota there, or take another disk (--dir, --journal-dir)",
        STOPS,
    ),
    "inodes": Check(
        "no more files can be created, however much space is free: snapshots fail",
        "delete many small files there, or take another disk (--dir, --journal-dir)",
        STOPS,
    ),
    "room": Check(
        "the next snapshots do not fit: training goes on, the last commit stands",
        "free space there, or keep fewer snapshots with WALRECOVER_KEEP",
        SAYS,
    ),
    "fsync": Check(
        "nothing that is written there can be made durable, so nothing is ever committed",
        "take a local disk (--dir, --journal-dir)",
    ),
    "link": Check(
        "the run's decisions cannot be created if absent, so the run cannot begin",
        "take a file system with hard links, such as ext4, XFS, NFS (--dir, --journal-dir)",
        STOPS,
    ),
    "rename": Check(
        "journals and snapshots cannot get their names",
        "take a POSIX file system (--dir, --journal-dir)",
        STOPS,
    ),
    "direct": Check(
        "writes go through the page cache: large snapshots push out what training has cached",
        "nothing needs it; a local ext4 or XFS has it",
    ),
    "volatile": Check(
        "what lies there is gone after a reboot or a power cut, and takes memory",
        "take a directory on a disk (--dir, --journal-dir)",
        SAYS,
    ),
    "layer": Check(
        "what lies there is gone with the container, the pod or the overlay",
        "mount a volume or a directory of the host, and take that (--dir, --journal-dir)",
        SAYS,
    ),
    "bind": Check(
        "if a wrong path was mounted, earlier runs are not seen and training starts from the "
        "beginning; docker creates a path of the host that is not there",
        "compare the host's path with the one that was meant; docker's --mount type=bind refuses "
        "a path that is not there",
        SAYS,
    ),
    "unsafe-mount": Check(
        "fsync returns before data is on the disk: a power cut can take what was committed",
        "mount it without that option",
        SAYS,
    ),
    "network": Check(
        "LMDB, which holds the journal, can be damaged there; snapshots are safe",
        "keep journals on a local disk of each host with --journal-dir",
        SAYS,
    ),
    "owner": Check(
        "what is written now will belong to you, in private folders: the owner can no longer "
        "resume the run",
        "run as the owner (docker run --user, su), or give the directory to one user with chown",
        SAYS,
    ),
    "group": Check(
        "another user of the group cannot restore this run; walrecover creates its folders "
        "private, those of each new snapshot too",
        "run as one user; or open what is there with chmod -R g+rX before the other one restores "
        "with replay --into",
    ),
    "size": Check(
        "whether there is space for its snapshots is not known",
        "give the size of the model and its optimizer's state with --size",
    ),
    "shm": Check(
        "loader workers pass batches through it, and die with 'Bus error' when it is full",
        "docker run --shm-size=8g or --ipc=host; in Kubernetes an emptyDir of medium Memory",
    ),
    "memory": Check(
        "training waits while its snapshots are written, and --memory-every keeps no step",
        "give the job more memory (its control group's limit counts), or do without",
    ),
    "clock": Check(
        "times in status, show and log are wrong; recovery does not use the clock",
        "set the clock and keep it with NTP, on every host of the run",
    ),
    "nofile": Check(
        "loader workers with many open files fail with 'Too many open files'",
        "ulimit -n 65536, or LimitNOFILE= of the service",
    ),
    "memlock": Check(
        "InfiniBand and GPUDirect cannot register memory: NCCL fails or falls back to TCP",
        "ulimit -l unlimited, or LimitMEMLOCK=infinity of the service",
    ),
    "fsize": Check(
        "a file that grows beyond it ends the process with SIGXFSZ, or fails with 'File too large'",
        "ulimit -f unlimited, or LimitFSIZE=infinity of the service",
        SAYS,
    ),
    "nproc": Check(
        "threads and loader workers cannot be started: 'Resource temporarily unavailable'",
        "ulimit -u unlimited, or LimitNPROC=infinity of the service",
    ),
    "core": Check(
        "a crash writes all memory of the process to disk first, which delays the restart",
        "ulimit -c 0, unless you want core files",
    ),
    "port": Check(
        "the ranks cannot meet: torchrun fails with EADDRINUSE, or joins another job",
        "end what holds it, or take another with --master-port, --rdzv-endpoint or MASTER_PORT",
        SAYS,
    ),
    "gpu": Check(
        "training runs on the CPU or ends at its first use of CUDA",
        "see whether nvidia-smi works here; give the container its GPUs (--gpus all); correct "
        "CUDA_VISIBLE_DEVICES; install a torch built for CUDA",
    ),
    "kernel": Check(
        "walrecover cannot watch processes by pidfd",
        "Linux 5.4 or newer; for a container a runtime whose seccomp profile allows pidfd_open",
        STOPS,
    ),
    "python": Check(
        "the command's Python cannot be started or is not supported",
        "Python 3.11 to 3.13",
    ),
    "torch": Check(
        "the script cannot train, or walrecover.attach cannot work with its objects",
        "install torch 2.4 or newer for the command's Python",
    ),
    "walrecover": Check(
        "the script cannot import walrecover, or writes with another release than the one that "
        "supervises it",
        "install this release for the command's Python",
    ),
    "lmdb": Check(
        "journals cannot be written or read",
        "install lmdb 3.0 or newer for the command's Python",
    ),
}
"""In the order in which they are reported."""
