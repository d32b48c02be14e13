"""What a training loop calls: `attach`, and the `Run` it returns.

`attaching` begins an attempt, `run` is the boundary, `loops` the data position, `meeting` the
agreement of ranks, `saving` the way to disk, `restoring` the way back.
"""

import logging

from walrecover.session.attaching import attach
from walrecover.session.run import Run

# A library says nothing by itself: what people must read goes to stderr as a line of its own.
logging.getLogger("walrecover").addHandler(logging.NullHandler())

__all__ = ["Run", "attach"]
