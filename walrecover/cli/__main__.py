"""`python -m walrecover.cli`."""

from walrecover.cli import main

main()
