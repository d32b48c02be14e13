"""The torch adapter: the only part of walrecover that imports torch.

`objects` captures and restores what was attached, `rng` the global generators, `loaders` puts a
DataLoader to a position, `ranks` knows the process group. The session calls it; it knows nothing
of journals, snapshots or the sequence.
"""
