"""What usually makes a script another one each time: by the first thing that differs.

Pure. Hints, not findings: the first difference is a fact, its cause a guess.
"""

from __future__ import annotations

from walrecover import twins

_UNSEEDED = "a generator that nobody seeds (seed Python's, NumPy's and torch's at the beginning)"
_TIME = "a seed from the time, a pid or os.urandom"
_WORKERS = "randomness in loader workers that is seeded by the script itself, or not at all"
_ORDER = "the order of a set or of a directory's files (sort them; PYTHONHASHSEED)"
_KERNELS = (
    "kernels whose sums come in any order: atomics on CUDA "
    "(torch.use_deterministic_algorithms(True), CUBLAS_WORKSPACE_CONFIG=:4096:8)"
)
_BENCHMARK = "torch.backends.cudnn.benchmark = True chooses another kernel each time"
_THREADS = "another number of threads"
_MEMORY = "memory that was never written (torch.empty), or a race between threads"

_DATA = (_WORKERS, _UNSEEDED, _TIME, _ORDER)
_COMPUTED = (_KERNELS, _BENCHMARK, _UNSEEDED, _TIME, _THREADS, _MEMORY)


def causes(what: str) -> tuple[str, ...]:
    """The usual causes of a first difference in this."""
    if what.startswith((twins.POSITION, twins.SAMPLES)):
        return (_UNSEEDED, _ORDER, _TIME)
    if what.startswith(twins.BATCH):
        return _DATA
    if what.startswith(twins.RNG):
        return (_UNSEEDED, _TIME, _ORDER)
    if what.startswith(twins.LEARNING_RATE):
        return ("a schedule that depends on the time, or on a number that differs", _ORDER)
    return _COMPUTED
