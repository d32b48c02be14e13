"""`walrecover run --adopt`: a script's own checkpoint files, checked, kept and put back.

`patterns` says which files, `wholeness` whether one is whole, `store` keeps versions and puts them
back, `tree` opens the script's own and puts them aside, `settling` looks at all of them while
nobody writes, `watching` while somebody does; `__main__` is the process that does so,
`supervisor.keeper` starts it, and `hook` counts a script's steps. What to keep and what to put back
is decided by `walrecover.adoption`. Never imports torch, and unpickles nothing.
"""
