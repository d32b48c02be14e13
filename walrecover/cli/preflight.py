"""What `walrecover run` looks at before its first attempt: says what costs the run, and refuses
only what cannot begin.

Owns how that is said; the judgement is `findings`'.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence

from walrecover.errors import BadInput
from walrecover.rundir import RunDir

log = logging.getLogger(__name__)


def preflight(run: RunDir, command: Sequence[str]) -> None:
    """Raises BadInput before anything is started or written."""
    from walrecover.doctor import before_a_run

    verdict = before_a_run(run, command, os.environ)
    for finding in verdict.says:
        log.warning("%s", finding)
    if verdict.stops:
        reasons = " · ".join(finding.sentence for finding in verdict.stops)
        raise BadInput(f"{reasons}. 'walrecover doctor' says more, --no-preflight does not look")
