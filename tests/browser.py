"""A real Chromium over its debugging pipe: enough to press keys, move a mouse and read the console."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--hide-scrollbars", "--remote-debugging-pipe",
)  # fmt: skip
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Tab:
    """One page. `errors` collects what the console and the page complain about."""

    def __init__(self, to: int, back: int) -> None:
        self.to, self.back = to, os.fdopen(back, "rb")
        self.buffer, self.count, self.session = b"", 0, ""
        self.errors: list[str] = []
        self.allowed: tuple[str, ...] = ("file:", "data:")  # what a page may request
        self.loaded = False
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """One command and its result; events that arrive meanwhile are kept."""
        self.count += 1
        message: dict[str, Any] = {"id": self.count, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self.count:
                assert "error" not in answer, answer
                return dict(answer["result"])

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self.buffer:
            data = os.read(self.back.fileno(), 1 << 20)
            assert data, "the browser has ended"
            self.buffer += data
        raw, self.buffer = self.buffer.split(b"\0", 1)
        message: dict[str, Any] = json.loads(raw)
        self._event(message.get("method", ""), message.get("params", {}))
        return message

    def _event(self, method: str, params: dict[str, Any]) -> None:
        if method == "Page.loadEventFired":
            self.loaded = True
        elif method == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(params["exceptionDetails"]))
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.errors.append(params["entry"]["text"])
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning"):
            self.errors.append(json.dumps(params["args"]))
        elif method == "Network.requestWillBeSent" and not params["request"]["url"].startswith(self.allowed):
            self.errors.append(f"request to {params['request']['url']}")

    def open(self, page: Path | str, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        """Load a file, or an address, and wait for its load event."""
        phone = width < 600
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone)
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.call("Emulation.setEmulatedMedia", features=scheme)
        self.loaded = False
        self.call("Page.navigate", url=page if isinstance(page, str) else page.as_uri())
        while not self.loaded:
            self._read()
        self.paint()

    def js(self, expression: str) -> Any:
        """Value of an expression, promises awaited; an exception fails the test."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def paint(self) -> None:
        """Return after the next two frames: whatever was asked to be drawn is drawn."""
        self.js("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done(1))))")

    def key(self, key: str) -> None:
        """Press and release; a printable key carries its text."""
        extra = {"text": key} if len(key) == 1 else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", key=key, **extra)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key)
        self.paint()

    def mouse(self, kind: str, x: float, y: float, **extra: Any) -> None:
        """mouseMoved, mousePressed, mouseReleased or mouseWheel at page coordinates of the viewport."""
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **extra)
        self.paint()

    def shot(self, path: Path, whole: bool = True, **more: Any) -> None:
        """A picture of the page; `more`: clip, format, quality as Page.captureScreenshot takes them."""
        clip = {"clip": self._all()} if whole else {}
        taken = self.call("Page.captureScreenshot", captureBeyondViewport=whole, **{**clip, **more})
        path.write_bytes(base64.b64decode(taken["data"]))

    def _all(self) -> dict[str, float]:
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        return {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}


@contextmanager
def chromium(profile: Path) -> Iterator[Tab]:
    """A browser with an empty profile; it ends with the block."""
    assert CHROMIUM is not None
    inward, to = os.pipe()
    back, outward = os.pipe()

    def connect() -> None:  # the browser reads commands from 3 and answers on 4
        a, b = os.dup(inward), os.dup(outward)
        os.dup2(a, 3)
        os.dup2(b, 4)

    command = ["nice", CHROMIUM, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
    process = subprocess.Popen(command, preexec_fn=connect, close_fds=False, stderr=subprocess.DEVNULL)
    os.close(inward)
    os.close(outward)
    tab = None
    try:
        tab = Tab(to, back)
        yield tab
    finally:
        os.close(to)  # the pipe's end is the browser's end
        if tab is not None:
            tab.back.close()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
