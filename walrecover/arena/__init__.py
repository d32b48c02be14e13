"""The arena: preallocated shared memory that a capture fills, in slots (specs/18-arena.md).

`layout` is the pure part: where things lie in a slot, and what a slot's words say. `slots` reads
and writes them, for the training process and for the saver; `memory` is the memory itself.
"""
