"""What a training loop calls: `attach`, and the `Run` it returns.

`attaching` begins an attempt, `run` is the boundary, `loops` the data position, `meeting` the
agreement of ranks, `saving` the way to disk, `restoring` the way back.
"""

from walrecover.session.attaching import attach
from walrecover.session.run import Run

__all__ = ["Run", "attach"]
