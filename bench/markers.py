"""How good are markers? Counts the tokens of a run that carry one, and those that carry an impossible one.

    python bench/markers.py RUN_FOLDER...

A token of an adapter's stream is attributed when it is the marker of one content. It is wrong when that content cannot
have been serving: another adapter's, one whose load was invoked only later, or, in streams that ended before their
adapter's second content was asked for, any but the first.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import numpy as np

from loadtest import history
from loadtest.analysis.attribution import token_codes
from loadtest.analysis.case import open_case
from loadtest.analysis.stats import clopper_pearson
from loadtest.analysis.trust import first_contents
from loadtest.analysis.versions import untorn


def count(folder: Path) -> Counter[str]:
    """The counts of one run."""
    recorded = history.load(folder)
    case = open_case(recorded)
    contents, table = case.look.line.contents, recorded.streams
    code = token_codes(recorded, contents)
    stream = np.repeat(np.arange(len(table)), table.tokens)
    mine = case.owner[stream] != contents.adapters.index("base")
    known = mine & (code >= 0)
    leak = known & (contents.adapter[code] != case.owner[stream])
    early = known & ~leak & (case.look.newest(code, recorded.at) < 0)
    other = np.zeros(len(code), bool)
    for name, (label, until) in first_contents(recorded).items():
        if (name, label) in contents.labels:
            only = (case.owner == contents.adapters.index(name)) & (case.ended < until)
            other |= known & only[stream] & (code != contents.labels.index((name, label)))
    return Counter(
        {
            "streams of adapters": int((case.owner != contents.adapters.index("base")).sum()),
            "their tokens": int(mine.sum()),
            "attributed": int(known.sum()),
            "wrong: another adapter's": int(leak.sum()),
            "wrong: not invoked yet": int(early.sum()),
            "wrong: not the only content so far": int((other & ~leak & ~early).sum()),
            "swaps acked": sum(op.outcome == "ok" for op in case.swaps.ops),
            "torn streams": untorn(case).violations,
        }
    )


def main() -> int:
    """Count all folders together."""
    total: Counter[str] = Counter()
    for folder in map(Path, sys.argv[1:]):
        total += count(folder)
    for name in ("streams of adapters", "swaps acked", "torn streams", "their tokens", "attributed"):
        print(f"{total[name]:>9,} {name}")
    wrong = {name: n for name, n in total.items() if name.startswith("wrong")}
    print(f"{sum(wrong.values()):>9,} wrong {wrong or ''}")
    low, high = clopper_pearson(total["attributed"], total["their tokens"])
    share = total["attributed"] / max(total["their tokens"], 1)
    print(f"share attributed {100 * share:.3f} % [{100 * low:.3f}, {100 * high:.3f}]")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
