"""The scrubber as a process: behind everybody else, one JSON line for each snapshot read."""
