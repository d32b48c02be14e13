"""The daemon: follows the journals of runs and keeps what they say where people can ask for it.

A keeper (the process that was started) and a follower (its child, the only one that reads journals
and writes the read model): specs/19-daemon.md. It reads runs and must not change one: it appends
no event, commits nothing, and whatever it keeps can be rebuilt from the journals. It may import
`walrecover`; `walrecover` never imports it.
"""
