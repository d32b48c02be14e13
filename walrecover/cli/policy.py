"""`walrecover policy`: what follows a failure, as `walrecover run` would do it here.

Owns finding the file; its keys are `policy_file`'s. Without a file no YAML is imported.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from walrecover.cli.options import as_json
from walrecover.errors import BadInput

if TYPE_CHECKING:
    from walrecover.policy_file import PolicyFile

FILE = "walrecover.yaml"

policy_option = click.option(
    "--policy",
    metavar="FILE",
    envvar="WALRECOVER_POLICY",
    help=f"What to do after which failure [default: ./{FILE}, where it is].",
)


def load(given: str | None) -> PolicyFile:
    """The policy file that is named, or the one that lies here, or none. Raises BadInput."""
    from walrecover.policy_file import PolicyFile, parse

    path = Path(given or FILE)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        if given is None:
            return PolicyFile()
        raise BadInput(f"--policy {path}: there is no such file") from None
    except OSError as error:
        raise BadInput(f"--policy {path}: {error.strerror}") from None
    return parse(data, str(path))


@click.command(
    "policy",
    help="The policy in force here, as a file would say it; or the JSON schema of such a file.",
)
@policy_option
@click.option("--schema", is_flag=True, help="Print the JSON schema of the file instead.")
@as_json
def command(policy: str | None, schema: bool, as_json: bool) -> int:
    from walrecover import policy_file
    from walrecover.cli.output import write_json

    if schema:
        _print_json(policy_file.schema())
        return 0
    found = load(policy)
    written = policy_file.written(found.policy(), found.hang_timeout)
    if as_json:
        write_json(written)
    else:
        import msgspec

        click.echo(msgspec.yaml.encode(written).decode(), nl=False)
    return 0


def _print_json(body: dict[str, object]) -> None:
    import msgspec

    click.echo(msgspec.json.format(msgspec.json.encode(body), indent=2).decode())
