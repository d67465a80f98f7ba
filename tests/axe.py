"""axe-core in an open page: what it finds that keeps somebody from reading or using it."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import browser


def violations(tab: browser.Tab) -> list[str]:
    """Serious and critical violations, one line each: rule, how many places, the first of them."""
    spec = importlib.util.find_spec("axe_core_python")
    assert spec is not None
    assert spec.origin is not None
    tab.js((Path(spec.origin).parent / "axe.min.js").read_text() + "; 1")
    ask = "axe.run(document, {resultTypes: ['violations']}).then((r) => JSON.stringify(r.violations))"
    found: list[dict[str, Any]] = json.loads(tab.js(ask))
    return [
        f"{v['id']} ({v['impact']}): {len(v['nodes'])} × {v['help']}; {v['nodes'][0]['html'][:120]}"
        for v in found
        if v["impact"] in ("serious", "critical")
    ]
