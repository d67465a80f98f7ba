"""How the command line reads `report FOLDER` beside `report compare A B`; needs nothing but click."""

from __future__ import annotations

from typing import Any

import click


class ReportGroup(click.Group):
    """`report FOLDER` writes a run's reports; `report compare A B` is its one visible subcommand."""

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """The subcommand that `args` begins with, or `write` for a folder."""
        if args and args[0] not in self.commands:
            args = ["write", *args]
        return super().resolve_command(ctx, args)
