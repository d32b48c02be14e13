"""`python -m walrecover_daemon`."""

from walrecover_daemon.start import main

main()
