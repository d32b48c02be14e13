"""`make race`: which way to survive kills leaves the most of the time for training.

Every contender trains the same model on the same data to the same step, under the same kills.
What it does is read from the log that its script writes. Writes a report (JSON), a picture (PNG),
and the tables of README.md and specs/17-goodput.md. Run it on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path

from tests.bench.goodput import contenders, table
from tests.bench.goodput.race import Race, Task
from tests.campaigns import report
from walrecover.processes import become_subreaper


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.goodput", description=__doc__)
    parser.add_argument("--kills", type=int, default=10, help="of each contender")
    parser.add_argument("--rate", type=float, default=4.0, help="kills per minute of training")
    parser.add_argument(
        "--contenders",
        default=",".join(contenders.names()),
        help=f"some of {', '.join(contenders.names())}; bare always runs",
    )
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    parser.add_argument("--out", type=Path, help="the report, by default specs/campaigns/race.json")
    parser.add_argument(
        "--work", type=Path, help="where to run, on the disk that is to be measured"
    )
    for name, default in Task()._asdict().items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default)
    args = parser.parse_args()
    unknown = set(args.contenders.split(",")) - set(contenders.names())
    if unknown:
        parser.error(f"no contender {sorted(unknown)[0]!r}: there are {contenders.names()}")
    return args


def main() -> int:
    args = arguments()
    print(f"seed {args.seed}", file=sys.stderr)
    began = time.monotonic()
    become_subreaper()
    task = Task(**{name: getattr(args, name) for name in Task._fields})
    with tempfile.TemporaryDirectory(dir=args.work) as folder:
        race = Race(Path(folder).resolve(), task, args.seed, args.rate, args.kills)
        partial = (args.out or report.ROOT / "build" / "race.json").with_suffix(".partial.json")
        partial.parent.mkdir(parents=True, exist_ok=True)
        counts = race.run([contenders.named(name) for name in args.contenders.split(",")], partial)
    path = report.write("race", counts, args.seed, began, args.out)
    print(table.tables(counts))
    if args.out is None:
        table.publish(path)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
