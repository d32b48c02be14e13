"""The daemon: follows the journals of runs and shows what they say.

It will own the follower (a cursor of stream, LSN and chain digest for each stream), the
projections folded from events, the status page, the scrubbing of snapshots and the archive. All
of these come with the daemon's own milestone; today the package is empty.

It reads runs and must not change one: it appends no event, commits nothing, and whatever it
keeps can be rebuilt from the journals. It may import `walrecover`; `walrecover` never imports it.
"""
