"""The locustfile that `loadtest run` uses: users who stream what the scenario says."""

from __future__ import annotations

from locust import task

from loadtest.swarm.hooks import install
from loadtest.swarm.users import AdapterUser

install()


class Tenant(AdapterUser):
    """Streams one completion after the other."""

    @task  # type: ignore[untyped-decorator]
    def complete(self) -> None:
        """One stream, from the request to `[DONE]`."""
        self.stream()
