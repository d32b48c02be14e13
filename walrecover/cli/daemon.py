"""`walrecover daemon`: becomes `walrecover-daemon`, which is a package of its own."""

from __future__ import annotations

import os
import sys

import click


class _Passed(click.Command):
    """Its words are the other command's, and so is what is wrong with them."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.args = list(args)
        return ctx.args


@click.command(
    "daemon",
    cls=_Passed,
    help="Follow the journals of runs: 'walrecover-daemon' by another name (see its --help).",
)
@click.pass_context
def command(ctx: click.Context) -> None:
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-P", "-m", "walrecover_daemon", *ctx.args])
