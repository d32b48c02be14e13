"""Small programs for the harness to record.

Owns: their source. Each runs in the root of the tree and acknowledges what it promises.
"""

from __future__ import annotations

_HEAD = """
import os, sys, threading
ack_fd = os.open(os.environ["CRASH_STATES_ACK"], os.O_WRONLY | os.O_APPEND)
def ack(text):
    os.write(ack_fd, text.encode() + b"\\n")
def sync_directory(path):
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    os.fsync(fd)
    os.close(fd)
def write_durably(path, data):
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
"""

# A file that is replaced as the textbooks say. Round n writes n times 3,000 letters.
REPLACE = (
    _HEAD
    + """
for n in range(1, 4):
    write_durably("state.tmp", bytes([96 + n]) * (3000 * n))
    os.rename("state.tmp", "state")
    sync_directory(".")
    ack(str(n))
"""
)

# Nothing is ever synced: right for a killed process, wrong for a power cut.
HASTY = (
    _HEAD
    + """
for n in range(1, 4):
    with open("state.tmp", "wb") as file:
        file.write(bytes([96 + n]) * (3000 * n))
    os.rename("state.tmp", "state")
    ack(str(n))
"""
)

# Two processes want entry 1; the one that links it first has won.
CREATE_IF_ABSENT = (
    _HEAD
    + """
os.mkdir("sequence")
sync_directory(".")
for name in ("first", "second"):
    if os.fork() == 0:
        write_durably(f"sequence/.{name}", name.encode())
        try:
            os.link(f"sequence/.{name}", "sequence/1")
            sync_directory("sequence")
            ack(name)
        except FileExistsError:
            pass
        os.unlink(f"sequence/.{name}")
        os._exit(0)
    os.wait()
"""
)

LMDB = (
    _HEAD
    + """
import lmdb
os.mkdir("env.tmp")
options = {"map_size": 1 << 20, "writemap": False, "lib_version": 0}
with lmdb.open("env.tmp", **options) as env, env.begin(write=True) as txn:
    txn.put(b"0", b"0" * 100)
sync_directory("env.tmp")
os.rename("env.tmp", "env")
sync_directory(".")
ack("0")
with lmdb.open("env", **options) as env:
    for n in range(1, 7):
        with env.begin(write=True) as txn:
            txn.put(b"%d" % n, b"%d" % n * (700 * n))
        ack(str(n))
"""
)

# Descriptors by every road: inherited, duplicated, from a thread, after exec, relative to others.
ROADS = (
    _HEAD
    + """
import fcntl, shutil, subprocess
os.makedirs("a/b")
directory = os.open("a", os.O_RDONLY)
fd = os.open("b/data", os.O_RDWR | os.O_CREAT, dir_fd=directory)
if os.fork() == 0:
    os.write(fd, b"child ")
    os._exit(0)
os.wait()
copy = os.dup(fd)
thread = threading.Thread(target=os.write, args=(copy, b"thread "))
thread.start()
thread.join()
os.fsync(copy)
os.set_inheritable(fd, True)
code = f"import os; os.write({fd}, b'exec '); os.fsync({fd})"
subprocess.run([sys.executable, "-c", code], close_fds=False, check=True)
os.rename("a", "moved")
os.chdir("moved")
os.writev(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 50), [b"x"] * 50)
os.rename("b/data", "b/renamed", src_dir_fd=directory, dst_dir_fd=directory)
os.pwrite(fd, b"CHILD", 0)
os.fsync(fd)
os.lseek(fd, 4096, os.SEEK_SET)
os.write(fd, b"far")
os.ftruncate(fd, 4098)
os.posix_fallocate(fd, 0, 9000)
shutil.copyfile("b/renamed", "../copied")
synced = os.open("../synced", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_DSYNC)
os.write(synced, b"one")
os.write(os.dup2(synced, 60), b"two")
os.unlink("../synced")
os.write(synced, b"nameless")
os.chdir("..")
os.mkdir("gone")
os.rmdir("gone")
"""
)

# Several processes and threads at work in one tree at once, with the races of real programs.
CROWD = (
    _HEAD
    + """
def work(rank, thread):
    for n in range(8):
        os.makedirs(f"shared/{n}", exist_ok=True)
        write_durably(f"shared/{n}/{rank}-{thread}.tmp", os.urandom(5000))
        os.rename(f"shared/{n}/{rank}-{thread}.tmp", f"shared/{n}/{rank}-{thread}")
        sync_directory(f"shared/{n}")
        with open(f"log-{rank}-{thread}", "ab", buffering=0) as log:
            log.write(f"{n}\\n".encode())
        ack(f"{n}/{rank}-{thread}")
children = []
for rank in range(3):
    pid = os.fork()
    if pid == 0:
        threads = [threading.Thread(target=work, args=(rank, t)) for t in range(2)]
        [t.start() for t in threads]
        [t.join() for t in threads]
        os._exit(0)
    children.append(pid)
for pid in children:
    os.waitpid(pid, 0)
"""
)

MAPPED = """
import mmap, os
fd = os.open("mapped", os.O_RDWR | os.O_CREAT)
os.ftruncate(fd, 4096)
mmap.mmap(fd, 4096)[0:4] = b"seen"
"""

READER = """
import os
fd = os.open("half-read", os.O_RDWR)
os.read(fd, 5)
os.write(fd, b"HERE")
os.fsync(fd)
"""
