"""The journal: the streams of a run's events, one LMDB environment per attempt and writer.

An event passes through three states, and the API names each:

    appended    `Journal.append` returned its LSN           lost if this process dies now
    committed   `Journal.committed` has reached its LSN     survives this process, kill -9 included
    durable     `Journal.sync` returned                     survives the machine, power cut included

Streams are created whole or not at all, are never reopened, never cut, and have one writer.
Readers check every event (LSN, checksum, chain, count) and never hold a writer up. What may be
damaged is examined by a child process before this one opens it.
"""

from walrecover.journal.checks import check as check_envelopes
from walrecover.journal.copying import build_stream, copy_stream
from walrecover.journal.examine import Report, examine, examine_all
from walrecover.journal.reader import Reader, Rewound
from walrecover.journal.stream import START, Cursor, StreamId, find_streams, stream_at
from walrecover.journal.writer import Journal

__all__ = [
    "START",
    "Cursor",
    "Journal",
    "Reader",
    "Report",
    "Rewound",
    "StreamId",
    "build_stream",
    "check_envelopes",
    "copy_stream",
    "examine",
    "examine_all",
    "find_streams",
    "stream_at",
]
