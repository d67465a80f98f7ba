"""Who answers the base model's streams beside an adapter's, as adapters are loaded and unloaded, on a real vLLM.

    python bench/slots.py [--slots 2]

Fills every LoRA slot of a fresh server one adapter at a time, then unloads all but the first. After each step one
stream of the first adapter runs while the base model is asked three times; prints how many tokens of those differ from
what the base says when it is asked alone.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

from loadtest import Server, forge
from loadtest.managed import open_managed
from loadtest.scenario import Managed, Target

LONG, SHORT, ASKED = 200, 24, 3  # tokens of the adapter's stream and of the base's, and how many of those


def ask(url: str, model: str, tokens: int) -> list[int]:
    """Greedy ids of one answer."""
    body = {"model": model, "prompt": [5, 6, 7, 8], "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
    data = json.dumps(body | {"return_token_ids": True}).encode()
    request = urllib.request.Request(f"{url}/v1/completions", data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as answer:
        choice: dict[str, Any] = json.load(answer)["choices"][0]
    return list(choice["token_ids"])


def differing(url: str, base: str, beside: str) -> list[int]:
    """Tokens of the base's answers beside a stream of an adapter that are not the base's own."""
    own = ask(url, base, SHORT)
    stream = threading.Thread(target=ask, args=(url, beside, LONG))
    stream.start()
    time.sleep(0.1)  # until it is in the batch
    beside_it = [ask(url, base, SHORT) for _ in range(ASKED)]
    stream.join()
    return [sum(a != b for a, b in zip(answer, own, strict=True)) for answer in beside_it]


def main() -> int:
    """Load, unload, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slots", type=int, default=2)
    slots = parser.parse_args().slots
    names = [f"tenant-{n}" for n in range(slots)]
    with tempfile.TemporaryDirectory() as work:
        target = open_managed(Target(managed=Managed(), max_loras=slots), Path(work), lambda line: None)
        try:
            server, url = Server(target.url), target.url
            base = server.models()[0].name
            for name in names:
                path = forge(Path(work) / "markers", target.base, adapter=name, count=1)[0]
                assert server.load(name, path).ok
                ask(url, name, SHORT)
                print(f"loaded {name}: {differing(url, base, names[0])} of {SHORT} tokens differ", flush=True)
            for name in reversed(names[1:]):
                assert server.unload(name).ok
                print(f"unloaded {name}: {differing(url, base, names[0])} of {SHORT} tokens differ", flush=True)
        finally:
            target.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
