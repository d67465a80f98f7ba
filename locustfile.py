"""What `locust -f locustfile.py` opens: who streams, and how. Edit it as any locustfile.

The scenario (--scenario, or the web form) says which adapters there are, what is hotfixed when, and what must hold.
A user's `self.stream()` draws adapter, prompt and length from it; whatever you pass yourself is taken from you.

Another kind of user is another class, for example one that reads what it streams and asks slowly:

    class Reader(AdapterUser):
        weight = 2
        wait_time = between(1, 5)

        @task
        def read(self) -> None:
            self.stream(model="tenant-a", prompt="Summarise the news.", max_tokens=200, temperature=0.0)
"""

from __future__ import annotations

from locust import task

from loadtest.swarm.hooks import install
from loadtest.swarm.users import AdapterUser

install()


class Tenant(AdapterUser):
    """Streams one completion after the other, as the scenario's mix and prompts say."""

    weight = 10

    @task
    def complete(self) -> None:
        """One stream, from the request to `[DONE]`. The result's `ok`, `reason` and `tokens` say how it went."""
        self.stream()
