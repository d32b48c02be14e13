"""A package that calls itself torch and has optimizers with step hooks: imported in no time."""

from __future__ import annotations

import textwrap
from pathlib import Path

OPTIMIZER = """
    pre, post = {}, {}

    class Handle:
        def __init__(self, hooks): self.hooks, self.key = hooks, len(hooks)
        def remove(self): self.hooks.pop(self.key, None)

    def register_optimizer_step_pre_hook(hook):
        handle = Handle(pre); pre[handle.key] = hook; return handle

    def register_optimizer_step_post_hook(hook):
        handle = Handle(post); post[handle.key] = hook; return handle

    class Optimizer:
        def __init__(self): self.state = {}
        def step(self):
            for hook in pre.values(): hook(self, (), {})
            self.state["made"] = 1
            for hook in post.values(): hook(self, (), {})
"""


def write_stand_in(site: Path) -> None:
    """Below this folder, which goes on a script's PYTHONPATH."""
    package = site / "torch" / "optim"
    package.mkdir(parents=True)
    for name in (package.parent / "__init__.py", package / "__init__.py"):
        name.write_text("")
    (package / "optimizer.py").write_text(textwrap.dedent(OPTIMIZER))
