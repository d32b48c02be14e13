"""The errors that walrecover raises, and what each asks the reader to do.

    WalrecoverError
    ├── BadInput             a command, option, name or directory is wrong: correct it
    ├── Mismatch             state and objects differ: restore with the model that wrote it
    ├── NotRestored          a loop or name was never reached: keep the script as it was
    ├── RunBusy              somebody alive drives this run: wait for it, or end it
    ├── Diverged             a resume is not the run before, and the policy stops: look, then decide
    ├── Fenced               a newer attempt took the run over: end, never retry
    ├── NothingToResume      resume="must", and there is no snapshot
    ├── BadLoss              the loss went bad: the policy goes back and leaves the data out
    ├── StorageFailed        the disk refused: mend it; what was committed is safe
    ├── UnsupportedVersion   written in another format version: use that walrecover
    └── Corrupt              bytes are not what was written: recovery falls back, or refuses
        └── Torn             ... the damage is an unfinished end, what is before it is whole

`Stopped` is a SystemExit, so that code after training never runs: the run is saved and resumable.
"""

from __future__ import annotations


class WalrecoverError(Exception):
    """Base of every error of this library. `exit_code` is what the command line ends with."""

    exit_code = 1


class BadInput(WalrecoverError):
    """What a person gave (option, name, directory, object) cannot be used."""

    exit_code = 2


class Mismatch(WalrecoverError):
    """The snapshot's state does not fit the attached objects."""


class NotRestored(WalrecoverError):
    """Part of the snapshot was never given back to the script."""


class RunBusy(WalrecoverError):
    """A living process holds the run."""

    exit_code = 2


class Fenced(WalrecoverError):
    """A newer attempt has taken the run over; this one must end without trying again."""


class Diverged(WalrecoverError):
    """The resumed run is not the one that it resumes, and the policy stops for that."""


class NothingToResume(WalrecoverError):
    """`resume="must"` and the run has no committed snapshot."""


class BadLoss(WalrecoverError, FloatingPointError):
    """The loss is not finite or left its course, and the policy is to go back (`numeric:
    rewind`)."""


class StorageFailed(WalrecoverError):
    """The storage refused a write or an fsync. What was committed before is untouched."""


class UnsupportedVersion(WalrecoverError):
    """The bytes are whole, but of a format version that this release does not know."""


class Corrupt(WalrecoverError):
    """Bytes are not the ones that were written."""


class Torn(Corrupt):
    """An unfinished write at the end; everything before it is whole."""


class Stopped(SystemExit):
    """Raised at a boundary once the snapshot is durable, when the run was asked to stop.

    `code` is 128 + the signal's number, as a shell reports it.
    """
