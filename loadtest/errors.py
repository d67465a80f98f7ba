"""Every error a user can cause, by cause. Each carries what was wrong, where, and what to do.

    LoadtestError               exit 70: a bug of ours unless a subclass says otherwise
    ├── UsageError              exit 64: the command line or an argument
    │   ├── ScenarioError       exit 64: problems of a scenario file, all at once
    │   ├── AdapterError        exit 64: a PEFT folder or base model folder that cannot be used
    │   └── HistoryError        exit 64: a results folder that cannot be read
    └── TargetError             exit 69: the server does not answer, or lacks what the run needs
        ├── Unreachable         nothing answered at the address
        ├── FeatureOff          it answered, but runtime LoRA is switched off
        └── TargetDied          a server we started ended by itself

Exit codes (DESIGN decision 6): 0 PASS, 1 FAIL, 2 UNKNOWN, 64, 69, 70.
"""

from __future__ import annotations

from dataclasses import dataclass

EXIT_PASS = 0
EXIT_FAIL = 1
EXIT_UNKNOWN = 2
EXIT_USAGE = 64
EXIT_UNAVAILABLE = 69
EXIT_INTERNAL = 70


class LoadtestError(Exception):
    """Base of all; `remedy` is one sentence that says what to do."""

    exit_code = EXIT_INTERNAL

    def __init__(self, message: str, *, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message}: {self.remedy}" if self.remedy else self.message


class UsageError(LoadtestError):
    """The user asked for something that cannot be done as asked."""

    exit_code = EXIT_USAGE


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake in a scenario file."""

    line: int  # 1-based; 0 when the place is unknown
    key: str  # dotted path, e.g. "phases[2].every"
    message: str  # what was found and what was expected
    remedy: str  # what to do

    def render(self, file: str) -> str:
        """`file:line: key: message: remedy`, one line."""
        where = f"{file}:{self.line}" if self.line else file
        key = f"{self.key}: " if self.key else ""
        tail = f": {self.remedy}" if self.remedy else ""
        return f"{where}: {key}{self.message}{tail}"


class ScenarioError(UsageError):
    """All problems of one scenario file."""

    def __init__(self, file: str, problems: tuple[Problem, ...]) -> None:
        self.file = file
        self.problems = problems
        super().__init__("\n".join(p.render(file) for p in problems))


class AdapterError(UsageError):
    """A PEFT or base folder that is missing, corrupt or unsupported."""


class HistoryError(UsageError):
    """A results folder that holds no readable history."""


class TargetError(LoadtestError):
    """The server under test cannot be used."""

    exit_code = EXIT_UNAVAILABLE


class Unreachable(TargetError):
    """Nothing answered; the message says what was tried."""


class FeatureOff(TargetError):
    """The server runs without runtime LoRA (no load endpoint)."""


class TargetDied(TargetError):
    """A server this tool started has ended; carries the last lines of its log."""

    def __init__(self, message: str, *, log_tail: str = "", remedy: str = "") -> None:
        super().__init__(message, remedy=remedy)
        self.log_tail = log_tail
