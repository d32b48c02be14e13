"""The saver: a process of its own, without torch, that makes captures durable (specs/18-arena.md).

`client` is the training process's side. In the process itself, `__main__` owns its beginning and
its end, `saving` what is done with a slot, `pace` how fast, `trainer` what is known of the process
that fills the slots.
"""
