"""`make torture-rehearse`: 100 kills of char_gpt.py and 20 of char_gpt_ddp.py, either rank."""

from __future__ import annotations

import argparse
import collections
import json
import random
import subprocess
import sys
import time
from typing import Any

from tests.campaigns.report import ROOT, write


def rehearse(kills: int, seed: int, command: list[str]) -> dict[str, Any]:
    """One rehearsal; its JSON, in short."""
    walrecover = [sys.executable, "-m", "walrecover.cli"]
    options = ["rehearse", "--json", "--kills", str(kills), "--seed", str(seed)]
    done = subprocess.run(
        [*walrecover, *options, "--", *command], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    body = json.loads(done.stdout)
    landed = [kill for kill in body.get("kills", []) if kill["landed"]]
    return {
        "identical": body.get("identical", False),
        "exit_code": done.returncode,
        "kills": len(landed),
        "by_phase": dict(collections.Counter(kill["phase"] for kill in landed)),
        "by_victim": dict(collections.Counter(kill["victim"] for kill in landed)),
        "digest": body.get("digest"),
        "seconds": round(body.get("seconds", 0.0), 1),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--kills-of-ranks", type=int, default=20)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    args = parser.parse_args()
    print(f"seed {args.seed}", file=sys.stderr)
    began = time.monotonic()
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    counts = {
        "char_gpt.py": rehearse(
            args.kills, args.seed, [sys.executable, "examples/char_gpt.py", "--epochs", "10"]
        ),
        "char_gpt_ddp.py": rehearse(
            args.kills_of_ranks,
            args.seed,
            [*torchrun, "--nproc-per-node", "2", "examples/char_gpt_ddp.py"],
        ),
    }
    write("rehearse", counts, args.seed, began)
    return 0 if all(count["identical"] for count in counts.values()) else 1


if __name__ == "__main__":
    raise SystemExit(main())
