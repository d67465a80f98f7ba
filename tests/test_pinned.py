"""Whole verdicts of golden, virtual and recorded histories, pinned figure by figure (tests/pinned.py writes them)."""

from __future__ import annotations

import gzip
import json

import pinned


def test_no_figure_of_a_pinned_verdict_has_changed() -> None:
    known = json.loads(gzip.decompress(pinned.FILE.read_bytes()))
    names = []
    for name, found in pinned.histories():
        names.append(name)
        assert pinned.differences(known[name], pinned.document(found)) == [], name
    assert names == list(known)


def test_a_difference_is_named_with_its_place() -> None:
    old = {"a": [1.0, {"b": "x"}], "c": True, "d": None}
    assert pinned.differences(old, {"a": [1.00001, {"b": "x", "new": 1}], "c": True, "d": None}) == []
    new = {"a": [1.1, {"b": "y"}], "c": False}
    assert pinned.differences(old, new) == [
        ".a[0]: 1.0 is now 1.1", ".a[1].b: 'x' is now 'y'", ".c: True is now False", ".d: None is now 'missing'",
    ]  # fmt: skip
