"""The race: goodput of ways to survive kills, on one script, under one schedule of kills.

Pure: `schedule`, `steplog`, `costs`, `table`. The rest runs processes, or draws
(specs/17-goodput.md, "The race").
"""
