"""The supervisor: starts the user's command, restarts it by policy, and leaves no orphan.

`child` is the command's process, `signals` what people send, `succession` rule 15, `loop` the
whole. Starts fast and stays small: it never imports torch, click or rich, and `walrecover run`
adds nothing to it but options.
"""

from walrecover.supervisor.loop import GRACE_SECONDS, supervise

__all__ = ["GRACE_SECONDS", "supervise"]
