"""The command line. Each command parses, makes one call, prints, and returns an exit code (errors.py lists them)."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from loadtest import errors

# Modules are imported inside the commands: `loadtest --help` must not pay for numpy, aiohttp or locust.

TARGET_HELP = "Server under test (http://host:port); also LOADTEST_TARGET."


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


@cli.command()
@click.argument("folder", type=click.Path(path_type=Path))
def report(folder: Path) -> int:
    """Write the reports of results/<run> again from its files; prints their paths."""
    from loadtest import harness

    harness.judge(folder)
    for name in harness.REPORTS:
        click.echo(folder / name)
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


@cli.group()
def adapters() -> None:
    """Adapters on disk and on a server."""


@adapters.command()
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--base", type=click.Path(path_type=Path), help="Base model folder; default: the embedded base.")
@click.option("--adapter", default="tenant-a", show_default=True, help="Name used in file names and seeds.")
@click.option("--count", default=2, show_default=True, help="How many versions.")
@click.option("--rank", default=8, show_default=True)
@click.option("--seed", default=0, show_default=True)
def forge(out: Path, base: Path | None, **options: Any) -> int:
    """Forge marker adapters into OUT: versions that can be told apart by every token they emit."""
    from loadtest import target

    for version, path, markers in target.forge(out, base, **options):
        click.echo(f"{version}\ttoken {markers}\t{path}")
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
