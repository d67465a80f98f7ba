"""The command line. Each command parses, makes one call, prints, and returns an exit code (errors.py lists them)."""

from __future__ import annotations

import contextlib
import json
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from loadtest import errors
from loadtest.tools.adapters_cli import adapters
from loadtest.tools.exp4_cli import SWAPS, bench, exp4, hotfix
from loadtest.tools.groups import ReportGroup
from loadtest.tools.terminal import FOLDER, as_json, out, progress, show

# Modules are imported inside the commands: `loadtest --help` must not pay for numpy, aiohttp or locust.

EXIT_INTERRUPTED = 130  # a shell's 128 + SIGINT
STREAMS = "100,500,1000"  # to calibrate with


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="loadtest")
def cli() -> None:
    """What happens to the users who stream from a LoRA adapter while it is hotfixed in place?

    Start with `loadtest hotfix`: it needs no server and answers in seconds.

    Exit codes: 0 PASS, 1 FAIL, 2 UNKNOWN, 64 usage or scenario error, 69 target unavailable, 70 internal error.
    """


@cli.command(context_settings={"ignore_unknown_options": True})
@click.argument("scenario", type=FOLDER)
@click.option("--target", help="Overrides the scenario's target: embedded or http://host:port.")
@click.option("--seed", type=int, help="Seed of the plan; without one it is drawn and recorded.")
@click.option("--results", type=FOLDER, help="Folder that receives the run's folder.")
@click.argument("locust_options", nargs=-1, type=click.UNPROCESSED)
def run(scenario: Path, locust_options: tuple[str, ...], **options: Any) -> int:
    """Run SCENARIO headless under Locust, and judge it.

    More options go to Locust: -u, -r, -t, --processes, --csv and so on. The exit code is the verdict's.
    """
    from loadtest import harness

    return harness.run_locust(scenario, {k: v for k, v in options.items() if v is not None}, locust_options)


@cli.command()
@click.argument("folder", type=FOLDER)
@as_json()
def judge(folder: Path, as_json: bool) -> int:
    """Judge results/<run> again from its files alone.

    The exit code is the verdict's.
    """
    from loadtest import harness

    outcome = harness.judge(folder)
    out((folder / "verdict.json").read_text() if as_json else outcome.text)
    return outcome.exit_code


@cli.group(cls=ReportGroup)
def report() -> None:
    """Write a run's reports again: loadtest report FOLDER.

    They are recomputed from the files of results/<run> and lie beside them. `compare` tells two runs apart.
    """


@report.command(hidden=True)
@click.argument("folder", type=FOLDER)
def write(folder: Path) -> int:
    """Write the reports of FOLDER and print their paths."""
    from loadtest import harness

    harness.judge(folder)
    for name in harness.REPORTS:
        out(str(folder / name))
    return errors.EXIT_PASS


@report.command()
@click.argument("run_a", type=FOLDER)
@click.argument("run_b", type=FOLDER)
@click.option("--html", "html_file", type=FOLDER, help="Also write the comparison as a page.")
def compare(run_a: Path, run_b: Path, html_file: Path | None) -> int:
    """What changed between two runs, as Markdown.

    Two runs of one scenario, before and after an engine upgrade or a flag; every change comes with its interval.
    """
    from loadtest import harness

    markdown, page = harness.compare(run_a, run_b)
    if html_file is not None:
        harness.write(html_file, page)
    out(markdown)
    return errors.EXIT_PASS


@cli.command(context_settings={"ignore_unknown_options": True})
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8000, show_default=True, type=click.IntRange(0, 65535), help="0 chooses a free one.")
@click.option("--model", type=FOLDER, help="Base model folder (Hugging Face layout).")
@click.option("--swap", type=SWAPS, default="pin", show_default=True, help="How it swaps adapters.")
@click.option("--size", type=click.Choice(["tiny", "wide"]), default="tiny", show_default=True, help="Generated base.")
@click.argument("server_options", nargs=-1, type=click.UNPROCESSED)
def serve(**options: Any) -> int:
    """Start the embedded server in the foreground.

    vLLM's HTTP contract and real LoRA arithmetic on the CPU. More options go to the server: --max-loras,
    --max-lora-rank, --step-ms, --plant and so on (python -m loadtest.server.app --help).
    """
    from loadtest import target

    return target.serve_forever(**options)


@cli.command()
@click.option("--streams", metavar="N,N", help=f"Numbers of streams.  [default: {STREAMS}]")
@click.option("--seconds", default=8.0, show_default=True, type=click.FloatRange(2), help="Of each number.")
@click.option("--url", metavar="URL", default="", help="A firehose of your own (bench/firehose.c).")
@click.option("--run", "folder", type=FOLDER, help="As many streams as this run had, at its pace; kept in its folder.")
@as_json()
def calibrate(streams: str | None, seconds: float, url: str, folder: Path | None, as_json: bool) -> int:
    """Measure how late this machine's engine is.

    Streams from a server whose tokens say when they were emitted: lag, CPU per token, and how many streams one engine
    holds here. With --run it becomes the error bar of that run's TTFT and ITL the next time it is judged.
    """
    from loadtest.tools import calibrate as tool

    if folder is not None:
        if streams is not None or url:
            name = "--url" if streams is None else "--streams"
            raise errors.UsageError(f"{name} and --run exclude each other", remedy="the run says how many streams")
        return show(tool.of_run(folder, seconds, progress), as_json)
    try:
        counts = tuple(int(n) for n in (STREAMS if streams is None else streams).split(","))
    except ValueError:
        raise errors.UsageError(f"--streams must be whole numbers, got {streams!r}", remedy="e.g. 100,1000") from None
    return show(tool.run(tool.Options(counts, seconds, url), progress), as_json)


@cli.command()
def schema() -> int:
    """Print the JSON Schema of a scenario, for editors."""
    from loadtest import scenario

    out(json.dumps(scenario.json_schema(), indent=2))
    return errors.EXIT_PASS


cli.add_command(adapters)
cli.add_command(hotfix)
cli.add_command(bench)
cli.add_command(exp4)


@contextlib.contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """SIGTERM ends a command as Ctrl-C does, for it may have to put an adapter back; also where SIGINT came ignored, as
    it does to what a script starts with `&`.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {s: signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)}
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    if before[signal.SIGINT] is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def main(argv: list[str] | None = None) -> int:
    """Entry point: runs a command, turns every error of the user into one message and an exit code."""
    try:
        with _terminated_as_interrupted():
            return int(cli.main(args=argv, prog_name="loadtest", standalone_mode=False) or 0)
    except click.exceptions.Exit as e:
        return e.exit_code
    except SystemExit:  # so click ends when the reader of its help has gone away
        return errors.EXIT_PASS
    except (click.Abort, KeyboardInterrupt):
        return _failed(argv, EXIT_INTERRUPTED, "interrupted")
    except click.exceptions.NoArgsIsHelpError as e:
        e.show()
        return errors.EXIT_USAGE
    except click.UsageError as e:
        where = f" (see {e.ctx.command_path} --help)" if e.ctx else ""
        return _failed(argv, errors.EXIT_USAGE, e.format_message() + where)
    except click.ClickException as e:
        return _failed(argv, errors.EXIT_USAGE, e.format_message())
    except errors.LoadtestError as e:
        return _failed(argv, e.exit_code, e.message, e.remedy)
    except Exception as e:
        progress(traceback.format_exc().rstrip())
        return _failed(
            argv, errors.EXIT_INTERNAL, f"this is a bug of loadtest ({type(e).__name__})", "please report it"
        )


def _failed(argv: list[str] | None, code: int, message: str, remedy: str = "") -> int:
    """One message for people and, where --json asks for it, a document that scripts can tell from a result."""
    progress(f"{message}: {remedy}" if remedy else message)
    if "--json" in (sys.argv[1:] if argv is None else argv):
        out(json.dumps({"error": {"message": message, "remedy": remedy, "exit_code": code}}, indent=2))
    return code


if __name__ == "__main__":
    sys.exit(main())
