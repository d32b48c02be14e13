"""A headless Chromium, driven by the W3C's WebDriver protocol over HTTP."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.waiting import wait_until

CHROMIUM, DRIVER = "chromium", "chromedriver"
_ELEMENT = "element-6066-11e4-a52e-4f735466cecf"


class Browser:
    def __init__(self, client: httpx.Client, session: str) -> None:
        self._client, self._path = client, f"/session/{session}"

    def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        answer = self._client.request(method, f"{self._path}{path}", json=body)
        value = answer.json()["value"]
        assert answer.status_code == 200, value
        return value

    def open(self, url: str) -> None:
        self._ask("POST", "/url", {"url": url})

    def run(self, script: str, *arguments: Any) -> Any:
        """The value of a script's `return`."""
        return self._ask("POST", "/execute/sync", {"script": script, "args": list(arguments)})

    def run_async(self, script: str, *arguments: Any) -> Any:
        """What a script hands to its last argument, a function."""
        return self._ask("POST", "/execute/async", {"script": script, "args": list(arguments)})

    def text(self, selector: str) -> str:
        return str(
            self.run("return document.querySelector(arguments[0])?.innerText ?? ''", selector)
        )

    def press(self, *keys: str) -> None:
        typed = [{"type": kind, "value": key} for key in keys for kind in ("keyDown", "keyUp")]
        actions = [{"type": "key", "id": "keyboard", "actions": typed}]
        self._ask("POST", "/actions", {"actions": actions})

    def command(self, name: str, **parameters: Any) -> Any:
        """One of Chromium's own debugging protocol."""
        body = {"cmd": name, "params": parameters}
        return self._ask("POST", "/goog/cdp/execute", body)

    def look(self, width: int, height: int, *, dark: bool) -> None:
        self.command(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 500,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.command("Emulation.setEmulatedMedia", features=[scheme])

    def screenshot(self, path: Path) -> None:
        """Of the whole page, not only of what the screen shows."""
        size = self.command("Page.getLayoutMetrics")["cssContentSize"]
        found = self.command(
            "Page.captureScreenshot", captureBeyondViewport=True, clip={**size, "scale": 1}
        )
        path.write_bytes(base64.b64decode(found["data"]))

    def complaints(self) -> list[str]:
        """What the page has written to its console, and what it was not given."""
        found = self._ask("POST", "/se/log", {"type": "browser"})
        return [each["message"] for each in found if each["level"] in ("SEVERE", "WARNING")]

    def requests(self) -> list[str]:
        """The addresses of everything that was asked for since the last time."""
        found = self._ask("POST", "/se/log", {"type": "performance"})
        messages = [json.loads(each["message"])["message"] for each in found]
        return [
            message["params"]["request"]["url"]
            for message in messages
            if message["method"] == "Network.requestWillBeSent"
        ]


@contextmanager
def chromium(profile: Path) -> Iterator[Browser]:
    """Fails, with what to install, where there is none."""
    for tool in (CHROMIUM, DRIVER):
        if shutil.which(tool) is None:
            pytest.fail(f"{tool} is missing: make tools, or install chromium and chromium-driver")
    with subprocess.Popen(
        [DRIVER, "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as driver:
        assert driver.stdout is not None
        try:
            line = next(line for line in driver.stdout if "successfully on port" in line)
            port = line.rpartition("port ")[2].strip(" .\n")
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120) as client:
                wait_until(lambda: client.get("/status").json()["value"]["ready"])
                session = client.post("/session", json=_wishes(profile)).json()["value"]
                assert "sessionId" in session, session
                try:
                    yield Browser(client, session["sessionId"])
                finally:
                    client.delete(f"/session/{session['sessionId']}")
        finally:
            driver.terminate()


def _wishes(profile: Path) -> dict[str, Any]:
    arguments = [
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--hide-scrollbars",
        f"--user-data-dir={profile}",
    ]
    return {
        "capabilities": {
            "alwaysMatch": {
                "browserName": "chrome",
                "goog:chromeOptions": {
                    "binary": shutil.which(CHROMIUM),
                    "args": arguments,
                    "perfLoggingPrefs": {"enableNetwork": True},
                },
                "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
            }
        }
    }
