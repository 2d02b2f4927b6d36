"""The group `footsteps cache`: its commands, in the order in which a cache is made, looked at and passed on.

(requests ─▶) build ─▶ info, verify, audit ─▶ push, pull          import, export: other programs' files
"""

import click

from cache_builder.cli.build import build
from cache_builder.cli.inspect import audit, info, verify
from cache_builder.cli.interchange import export_command, import_command
from cache_builder.cli.requests import requests
from cache_builder.cli.share import pull, push


@click.group()
def cache() -> None:
    """Build, check and share what the teacher's checkpoints say."""


for command in (requests, build, info, verify, audit, push, pull, import_command, export_command):
    cache.add_command(command)
