"""A scenario's `stages` as a Locust load shape."""

from __future__ import annotations

from collections.abc import Sequence

from locust import LoadTestShape


class Stages(LoadTestShape):  # type: ignore[misc]  # Locust has no types
    """Ramps to each stage's users in turn and holds the last until the run ends.

    Made by hand for scenarios that have stages: `abstract` keeps Locust from collecting it out of a locustfile.
    """

    abstract = True

    def __init__(self, stages: Sequence[tuple[float, int, float]], run_time_s: float | None) -> None:
        """`stages`: (seconds from the start at which the stage ends, users, users per second)."""
        super().__init__()
        self.stages = tuple(stages)
        self.run_time_s = run_time_s

    def tick(self) -> tuple[int, float] | None:
        """Users and spawn rate now; None ends the test. Locust ignores -t when there is a shape, so it is kept here."""
        elapsed = float(self.get_run_time())
        if self.run_time_s is not None and elapsed >= self.run_time_s:
            return None
        for until, users, rate in self.stages:
            if elapsed < until:
                return users, rate
        _, users, rate = self.stages[-1]
        return users, rate
