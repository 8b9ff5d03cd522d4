"""Commands for the picture storage."""

import shlex
from typing import TYPE_CHECKING

import rich_click as click

from entrypoints.cli.output import json_option, print_json, run

if TYPE_CHECKING:
    from config.container import Container
    from config.settings import Settings


@click.group("storage")
def storage_group() -> None:
    """The storage of the pictures."""


@storage_group.command("cors")
@click.option("--any-origin", is_flag=True, help="Allow all web pages; needs no database.")
@json_option
def show_cors(*, any_origin: bool, as_json: bool) -> None:
    """Print the CORS rule that lets web pages use the links to an S3 bucket.

    It allows the origins of WEARON_ORIGINS and WEARON_PUBLIC_URL and those of all stores, so apply
    it again when a store's origins change. With --any-origin it need not change: a link is a secret
    of its own, and the API serves other storages' links to all pages too.

    With --json it is in the form of S3's PutBucketCors, which R2, MinIO and others understand.
    """
    from adapters.storage.s3 import cors_rule  # noqa: PLC0415 - help needs no adapters

    origins, settings = run(lambda container: _origins(container, any_origin=any_origin))
    if as_json:
        print_json(cors_rule(origins))
        return
    click.echo("Web pages that may use the bucket's links:")
    for origin in origins:
        click.echo(f"  {origin}")
    again = "wearon storage cors --json" + (" --any-origin" if any_origin else "")
    click.echo(f"\nTo apply this:\n  {again} > cors.json\n  {_command(settings)}")


async def _origins(container: "Container", *, any_origin: bool) -> "tuple[list[str], Settings]":
    """Raises ``ClickException`` unless the pictures are in a bucket."""
    from config.options import Storage  # noqa: PLC0415 - help needs no settings

    settings: Settings = container.settings()
    if settings.storage is not Storage.S3:
        raise click.ClickException(
            "WEARON_STORAGE: only `s3` has a bucket; the API serves the links of other storages,"
            " to all web pages"
        )
    return ["*"] if any_origin else await container.page_origins()(), settings


def _command(settings: "Settings") -> str:
    """For the AWS command line."""
    words = ["aws", "s3api", "put-bucket-cors", "--bucket", settings.require("s3_bucket")]
    words += ["--cors-configuration", "file://cors.json"]
    if settings.s3_endpoint is not None:
        words += ["--endpoint-url", settings.s3_endpoint]
    return shlex.join(words)
