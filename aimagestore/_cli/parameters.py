"""Arguments and options that several commands have."""

from __future__ import annotations

import click

from .._core.filter_keys import FILTERS
from .completion import complete_key, complete_ref
from .exits import CommandError, ExitCode

_REF = "an ID, a name, or the beginning of an ID."

ref_argument = click.argument(
    "ref", metavar="REF", shell_complete=complete_ref, help=f"The image: {_REF}"
)
refs_argument = click.argument(
    "refs",
    metavar="REF",
    nargs=-1,
    required=True,
    shell_complete=complete_ref,
    help=f"The images, each {_REF}",
)
optional_refs_argument = click.argument(
    "refs", metavar="REF", nargs=-1, shell_complete=complete_ref, help=f"The images, each {_REF}"
)
key_argument = click.argument(
    "key",
    metavar="KEY",
    shell_complete=complete_key,
    help="The item, such as manifest; see inspect.",
)
json_option = click.option("--json", is_flag=True, help="Print JSON.")
filter_option = click.option(
    "--filter",
    "-f",
    "filters",
    multiple=True,
    metavar="KEY=VALUE",
    help="Only images that pass this filter of podman's; several times. With KEY!=VALUE, only "
    f"those that do not. KEY: {', '.join(FILTERS)}.",
)
force_option = click.option(
    "--force", is_flag=True, help="Put even what podman cannot read into its store."
)
no_verify_option = click.option(
    "--no-verify", is_flag=True, help="Do not compare the data with its digest."
)


def pair(text: str, what: str) -> tuple[str, str]:
    """Split a text at the first ``=``.

    :param what: the form that the text should have
    :raises CommandError: when there is no ``=``
    """
    left, separator, right = text.partition("=")
    if not separator:
        raise CommandError(f"{text!r} is not {what}", ExitCode.USAGE)
    return left, right
