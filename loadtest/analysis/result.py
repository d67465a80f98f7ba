"""What a judgement consists of; `export.to_json` writes it, `verdict.judge` makes it."""

from __future__ import annotations

from dataclasses import dataclass

from loadtest.analysis.case import Case, Witness
from loadtest.analysis.effects import Alarms
from loadtest.analysis.gates import Gate
from loadtest.analysis.isolated import Budget
from loadtest.analysis.isolated import Status as Status
from loadtest.analysis.latency import Group, Hangover
from loadtest.analysis.ledger import Effect, Ledger
from loadtest.analysis.stats import Interval


@dataclass(frozen=True, slots=True)
class Require:
    """What the scenario demands. None: not demanded."""

    level: str = "stream-atomic"
    min_swaps: int = 10
    swap_ack_p99_ms: float | None = None
    hangover: float | None = None  # ITL after over before
    isolated_error_rate: float | None = None  # of bystander streams in swap windows
    isolated_stall: float | None = None  # time-weighted gap of bystanders in swap windows over outside
    seed: int = 0  # of every resampling
    clock_error_ns: int = 0  # two stamps closer than this are concurrent


@dataclass(frozen=True, slots=True)
class Guarantee:
    """The status of one guarantee."""

    name: str
    status: Status
    required: bool
    violations: int
    exposed: int  # units that could have shown a violation
    unit: str  # "streams", "bystander streams", "loads", "runs"
    interval: Interval  # 95 %, of violations per exposed unit
    because: str
    kinds: dict[str, int]
    witnesses: tuple[Witness, ...]


@dataclass(frozen=True, slots=True)
class Verdict:
    """A judged history."""

    status: Status
    require: Require
    level_held: str | None  # the strongest level all of whose guarantees are PASS
    level_broken: str | None  # the weakest level with a FAIL
    guarantees: tuple[Guarantee, ...]
    budgets: tuple[Budget, ...]
    gates: tuple[Gate, ...]
    case: Case
    book: Ledger
    effects: dict[str, Effect]  # figure or guarantee -> real minus sham
    hangover: Hangover
    arms: tuple[Group, ...]
    adapters: tuple[Group, ...]
    false_alarms: Alarms  # arm -> guarantee -> violations, streams, interval of their share
