"""The Hotfix tab under a real Locust's --web-login, and --metrics: who is not logged in sees and swaps nothing."""

from __future__ import annotations

import urllib.error
import urllib.request
from http.cookiejar import CookieJar
from pathlib import Path

import pytest
from locust_run import Web, free_port, locust, until
from prometheus_client.parser import text_string_to_metric_families

pytestmark = pytest.mark.slow

LOCUSTFILE = """
from flask_login import UserMixin, login_user
from locust import events, task
from loadtest.swarm.hooks import install
from loadtest.swarm.users import AdapterUser

install()

class Somebody(UserMixin):
    def get_id(self):
        return "somebody"

@events.init.add_listener
def on_init(web_ui, **_):
    web_ui.app.secret_key = "of a test"
    web_ui.login_manager.user_loader(lambda name: Somebody())
    web_ui.app.add_url_rule("/enter", "enter", lambda: str(login_user(Somebody())))

class Tenant(AdapterUser):
    @task
    def complete(self):
        self.stream()
"""


class Stay(urllib.request.HTTPRedirectHandler):
    """Answers a redirect as what it is."""

    def redirect_request(self, *args: object, **kwargs: object) -> None:
        return None


def asked(opener: urllib.request.OpenerDirector, url: str, data: bytes | None = None) -> tuple[int, str]:
    """(status, where it leads or what it says)."""
    try:
        with opener.open(urllib.request.Request(url, data, {"Content-Type": "application/json"}), timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as e:
        return e.code, str(e.headers.get("Location", ""))


def test_every_route_leads_to_the_login_and_opens_after_it(tmp_path: Path) -> None:
    file = tmp_path / "locustfile.py"
    file.write_text(LOCUSTFILE)
    port, exported = free_port(), free_port()
    args = ("--web-host", "127.0.0.1", "--web-port", str(port), "--web-login", "--metrics", str(exported))
    with locust(tmp_path, "long.yaml", *args, locustfile=file):
        web = Web(port)
        until(lambda: Web(exported).url and _answers(f"{Web(exported).url}/metrics"), "the metrics' port")
        until(lambda: _answers(f"{web.url}/enter"), "Locust's web UI")
        strange = urllib.request.build_opener(Stay())
        for path in ("", "/state.json", "/report/x", "/metrics", "/tab.js"):
            status, where = asked(strange, f"{web.url}/hotfix{path}")
            assert (status, "/login" in where) == (302, True), path
        assert asked(strange, f"{web.url}/hotfix/swap", b"{}")[0] == 302
        known = urllib.request.build_opener(Stay(), urllib.request.HTTPCookieProcessor(CookieJar()))
        assert asked(known, f"{web.url}/enter")[0] == 200
        assert "Hotfix, live" in asked(known, f"{web.url}/hotfix")[1]
        assert asked(known, f"{web.url}/hotfix/swap", b"{}")[0] == 403  # logged in, but not sent by the page
        status, text = asked(strange, f"http://127.0.0.1:{exported}/metrics")  # a port of its own is Prometheus's
        assert status == 200
        assert [f.name for f in text_string_to_metric_families(text)] == ["loadtest_info"]


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=60):
            return True
    except OSError:
        return False
