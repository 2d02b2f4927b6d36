"""A headless Chromium, driven over WebDriver's HTTP protocol with the standard library alone.

with browse(page) as browser:      skips the test where there is no chromium or no chromedriver
    browser.find("#results").click()
"""

import base64
import json
import os
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

ELEMENT = "element-6066-11e4-a52e-4f735466cecf"


@dataclass(frozen=True)
class Element:
    browser: "Browser"
    identity: str

    @property
    def text(self) -> str:
        return str(self.browser.call("GET", f"/element/{self.identity}/text"))

    @property
    def displayed(self) -> bool:
        return bool(self.browser.call("GET", f"/element/{self.identity}/displayed"))

    def attribute(self, name: str) -> str | None:
        value = self.browser.call("GET", f"/element/{self.identity}/attribute/{name}")
        return None if value is None else str(value)

    def click(self) -> None:
        """Scroll to the middle of the window, clear of what sticks to its edges, and click."""
        scroll = {"script": "arguments[0].scrollIntoView({block: 'center'})", "args": [{ELEMENT: self.identity}]}
        self.browser.call("POST", "/execute/sync", scroll)
        self.browser.call("POST", f"/element/{self.identity}/click", {})


@dataclass(frozen=True)
class Browser:
    session: str

    def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.session + path, data, {"Content-Type": "application/json"}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return json.load(response)["value"]
        except urllib.error.HTTPError as error:
            with error:
                message = error.read().decode()
            raise AssertionError(f"{method} {path}: {message[:500]}") from None

    def open(self, page: Path | str) -> None:
        """Go to a file or URL and wait until all of it is there; the driver may come back while it is being parsed."""
        self.call("POST", "/url", {"url": page if isinstance(page, str) else page.resolve().as_uri()})
        end = time.monotonic() + 30
        while not self.run("return document.readyState == 'complete'"):
            assert time.monotonic() < end, f"{page} does not finish loading"
            time.sleep(0.05)

    def find_all(self, selector: str) -> list[Element]:
        found = self.call("POST", "/elements", {"using": "css selector", "value": selector})
        return [Element(self, entry[ELEMENT]) for entry in found]

    def find(self, selector: str) -> Element:
        """Return the first match, waiting for the page's script where there is none yet."""
        end = time.monotonic() + 10
        while not (elements := self.find_all(selector)) and time.monotonic() < end:
            time.sleep(0.05)
        assert elements, f"nothing on the page matches {selector!r}"
        return elements[0]

    def run(self, script: str) -> Any:
        return self.call("POST", "/execute/sync", {"script": script, "args": []})

    def devtools(self, command: str, **parameters: Any) -> Any:
        return self.call("POST", "/goog/cdp/execute", {"cmd": command, "params": parameters})

    def emulate(self, width: int, height: int, *, dark: bool) -> None:
        phone = width < 600
        self.devtools(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone
        )
        features = {"prefers-color-scheme": "dark" if dark else "light", "prefers-reduced-motion": "reduce"}
        self.devtools(
            "Emulation.setEmulatedMedia", features=[{"name": name, "value": v} for name, v in features.items()]
        )

    def screenshot(self) -> bytes:
        """Return a PNG of the whole page, not only of what the window shows."""
        answer = self.devtools("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        return base64.b64decode(answer["data"])

    def barriers(self) -> list[str]:
        """Return what axe-core calls a serious or critical barrier for who cannot see, point or tell colors apart.

        Skips the test where there is no axe-core.
        """
        self.run(_axe())
        found = self.run("return axe.run({resultTypes: ['violations']}).then(result => result.violations)")
        return [
            f"{each['id']}: {node['target']} {node['failureSummary']}"
            for each in found
            if each["impact"] in ("serious", "critical")
            for node in each["nodes"]
        ]

    def complaints(self) -> list[str]:
        """Return the console's errors since the last call: refused loads, violated policies, exceptions."""
        return [entry["message"] for entry in self.call("POST", "/se/log", {"type": "browser"})]


@cache
def _axe() -> str:
    """Return axe-core's script, which is not carried here: MPL-2.0."""
    named = os.environ.get("FOOTSTEPS_AXE")
    npm = shutil.which("npm")
    if named is None and npm is not None:
        root = subprocess.run([npm, "root", "--global"], capture_output=True, text=True).stdout.strip()
        named = f"{root}/axe-core/axe.min.js"
    if named is None or not Path(named).is_file():
        pytest.skip("needs axe-core (npm install --global axe-core, or FOOTSTEPS_AXE=…/axe-core/axe.min.js)")
    return Path(named).read_text(encoding="utf-8")


@contextmanager
def browse(profile: Path) -> Iterator[Browser]:
    """Start chromedriver and a headless Chromium with a fresh profile in `profile`, and end both."""
    driver = shutil.which("chromedriver")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not driver or not chromium:
        pytest.skip("needs chromium and chromedriver (Debian: apt-get install chromium chromium-driver)")
    process = subprocess.Popen([driver, "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    try:
        ready = next(line for line in process.stdout if "started successfully on port" in line)
        port = int(ready.rsplit(" ", 1)[-1].strip(". \n"))
        arguments = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        options = {"binary": chromium, "args": [*arguments, f"--user-data-dir={profile}"]}
        wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        started = Browser(f"http://127.0.0.1:{port}/session").call(
            "POST", "", {"capabilities": {"alwaysMatch": {"browserName": "chrome", **wanted}}}
        )
        browser = Browser(f"http://127.0.0.1:{port}/session/{started['sessionId']}")
        try:
            yield browser
        finally:
            browser.call("DELETE", "")
    finally:
        process.terminate()
        process.wait(timeout=20)
        process.stdout.close()
