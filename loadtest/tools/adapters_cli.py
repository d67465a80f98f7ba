"""The command line of `loadtest adapters`; the work is in adapters_cmd.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from loadtest.tools.terminal import FOLDER, as_json, on_server, server, show

# Modules are imported inside the commands: `loadtest --help` must not pay for numpy or aiohttp.


@click.group()
def adapters() -> None:
    """Adapters on disk and on a server.

    Exit codes of load, unload and hotfix: 0 done, 1 refused, 2 nobody can say, 69 the server does not do such things.
    """


@adapters.command("list")
@on_server
def list_adapters(as_json: bool, **connection: Any) -> int:
    """List what a server serves: base models and adapters."""
    from loadtest.tools import adapters_cmd

    return show(adapters_cmd.list_models(server(**connection)), as_json)


@adapters.command()
@click.argument("name")
@click.argument("path")
@click.option("--check/--no-check", default=True, help="Refuse a PATH that no engine would take.  [default: check]")
@on_server
def load(name: str, path: str, check: bool, as_json: bool, **connection: Any) -> int:
    """Load the folder PATH under NAME.

    PATH is the folder as the server sees it. Where it lies on this machine too, it is checked first.
    """
    from loadtest.tools import adapters_cmd

    return show(adapters_cmd.load(server(**connection), name, path, check=check), as_json)


@adapters.command()
@click.argument("name")
@on_server
def unload(name: str, as_json: bool, **connection: Any) -> int:
    """Take the adapter NAME out of service."""
    from loadtest.tools import adapters_cmd

    return show(adapters_cmd.unload(server(**connection), name), as_json)


@adapters.command("hotfix")
@click.argument("name")
@click.argument("path")
@click.option("--check/--no-check", default=True, help="Refuse a PATH that no engine would take.  [default: check]")
@click.option(
    "--watch",
    default=5.0,
    show_default=True,
    type=click.FloatRange(min=0),
    help="Seconds to look for a marker's new version.",
)
@on_server
def hotfix_adapter(name: str, path: str, check: bool, watch: float, as_json: bool, **connection: Any) -> int:
    """Replace the adapter NAME in place by PATH.

    Says what it replaced and, when PATH is a marker adapter, when the new version was first seen.
    """
    from loadtest.tools import adapters_cmd

    return show(adapters_cmd.hotfix(server(**connection), name, path, check=check, watch_s=watch), as_json)


@adapters.command()
@click.argument("path", type=FOLDER)
@click.option("--max-rank", type=click.IntRange(1), help="The server's --max-lora-rank.")
@click.option("--base", type=FOLDER, help="Folder of the base model it is meant for.")
@as_json()
def inspect(path: Path, max_rank: int | None, base: Path | None, as_json: bool) -> int:
    """Describe the folder PATH, and why engines would refuse it.

    Exit code 1 when there is a reason to refuse it. No server is asked.
    """
    from loadtest.tools import adapters_cmd

    return show(adapters_cmd.inspect(path, max_rank=max_rank, base=base), as_json)


@adapters.command()
@click.argument("repos", nargs=-1, metavar="[REPO[@REVISION]]...")
@click.option("--dest", type=FOLDER, default="downloads", show_default=True, help="Where they are kept.")
@as_json()
def fetch(repos: tuple[str, ...], dest: Path, as_json: bool) -> int:
    """Download adapters from the Hugging Face hub.

    Without names: the sample adapter for Qwen2.5-0.5B. The revision is pinned in DEST/adapters.lock.json; a cut
    download goes on where it stopped. HF_TOKEN, HF_ENDPOINT and HF_HUB_OFFLINE are honoured.
    """
    from loadtest.tools import adapters_cmd
    from loadtest.tools.bars import downloads

    with downloads() as report:
        found = adapters_cmd.fetch(repos, dest, report)
    return show(found, as_json)


@adapters.command()
@click.argument("out", type=FOLDER)
@click.option("--base", type=FOLDER, help="Base model folder; default: the embedded base.")
@click.option("--adapter", default="tenant-a", show_default=True, help="Name used in file names and seeds.")
@click.option("--count", default=2, show_default=True, type=click.IntRange(1), help="How many versions.")
@click.option("--rank", default=8, show_default=True, type=click.IntRange(1), help="Of each version.")
@click.option("--seed", default=0, show_default=True, help="Equal seeds give equal bytes.")
@as_json()
def forge(out: Path, base: Path | None, as_json: bool, **options: Any) -> int:
    """Forge marker adapters into the folder OUT.

    Each version makes the base model emit a token of its own, so that every token tells which version made it.
    """
    from loadtest import target
    from loadtest.tools import adapters_cmd

    return show(adapters_cmd.forged(target.forge(out, base, **options)), as_json)
