"""`walrecover rehearse`: the user's own script, crashed on purpose, and its bits compared.

`plan` draws the kills, `stage` runs the command, `watch` and `tree` find its processes, `kill`
makes the kills, `flow` tells the recovery, `readout` reads both runs, `compare` compares them,
`report` says it, `page` leaves it to be looked at, `run` holds all of it together. Never imports
torch, and never opens the user's own run directory.
"""

from walrecover.rehearse.run import rehearse

__all__ = ["rehearse"]
