"""A headless Chromium for the tests, driven as a user does: by what things are called, with real clicks and keys.

It speaks WebDriver (W3C) with Debian's chromedriver over the standard library. Selenium would bring a dozen packages
for the same ten requests.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import os
import re
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

#: How long something may take to appear.
PATIENCE_S = 60.0
_ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
_OPTIONS = (
    "--headless=new",
    "--no-sandbox",  # as root there is none
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-features=Translate,OptimizationHints,MediaRouter",
    "--force-prefers-reduced-motion",
)
#: Elements of a kind by what they are called, within the dialog that is open; those that are seen.
_FIND = """
const [kind, name] = arguments;
const kinds = {
    button: "button, a.pf-v6-c-button, summary", link: "a", heading: "h1, h2, h3", field: "input, select, textarea",
    alert: ".pf-v6-c-alert", row: "tbody tr", cell: "td, th", text: "p, li, span, dd, pre, td, th, h1, h2, h3",
};
const place = [...document.querySelectorAll("dialog[open]")].at(-1) ?? document;
const words = text => (text ?? "").replace(/\\s+/g, " ").trim();
const labels = element => [...element.labels ?? []].map(one => one.innerText).join(" ");
const called = element => words(element.getAttribute("aria-label") || labels(element) || element.innerText);
const fits = element => name.endsWith("*") ? called(element).includes(name.slice(0, -1)) : called(element) === name;
return [...place.querySelectorAll(kinds[kind])].find(one => one.checkVisibility() && fits(one)) ?? null;
"""


def reason_not_to_start() -> str | None:
    """Why there is no browser here, or None."""
    missing = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
    return f"needs {' and '.join(missing)}" if missing else None


class BrowserError(AssertionError):
    """What WebDriver says."""


class Driver:
    """A chromedriver."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        environment = {**os.environ, "HOME": os.fspath(directory), "TMPDIR": os.fspath(directory)}
        with (directory / "log").open("wb") as log:
            self._process = subprocess.Popen(
                ["chromedriver", "--port=0", "--allowed-ips=127.0.0.1"],
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment,
                start_new_session=True,
            )
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if found := re.search(rb"started successfully on port (\d+)", line):
                self._port = int(found[1])
                break
        else:
            raise BrowserError((directory / "log").read_text())
        # Nobody else reads what it prints, and it must not wait for that.
        threading.Thread(target=self._process.stdout.read, daemon=True).start()

    def request(self, method: str, path: str, body: Any = None) -> Any:
        """The value of the answer. Raises BrowserError."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=120)
        with contextlib.closing(connection):
            connection.request(method, path, None if method == "GET" else json.dumps(body or {}))
            value = json.loads(connection.getresponse().read())["value"]
        if isinstance(value, dict) and "error" in value:
            raise BrowserError(f"{value['error']}: {value['message'].splitlines()[0]}")
        return value

    def close(self) -> None:
        """End it with all of its browsers."""
        self._process.terminate()
        self._process.wait(timeout=30)
        if self._process.stdout is not None:
            self._process.stdout.close()


class Browser:
    """A window."""

    def __init__(self, driver: Driver, *, downloads: Path, width: int = 1280, height: int = 800) -> None:
        profile = tempfile.mkdtemp(prefix="profile-", dir=driver.directory)
        options = [*_OPTIONS, f"--user-data-dir={profile}", f"--window-size={width},{height}"]
        preferences = {"download.default_directory": os.fspath(downloads), "download.prompt_for_download": False}
        chrome = {"args": options, "binary": shutil.which("chromium"), "prefs": preferences}
        wanted = {"goog:chromeOptions": chrome, "goog:loggingPrefs": {"browser": "ALL"}}
        self._driver = driver
        made = driver.request("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
        self._session = f"/session/{made['sessionId']}"

    def _ask(self, method: str, path: str, body: Any = None) -> Any:
        return self._driver.request(method, self._session + path, body)

    def close(self) -> None:
        """End the browser."""
        self._ask("DELETE", "")

    def open(self, address: str) -> None:
        """Go there, and wait until it is loaded."""
        self._ask("POST", "/url", {"url": address})

    def reload(self) -> None:
        """Load the page again."""
        self._ask("POST", "/refresh")

    def run(self, script: str, *arguments: Any) -> Any:
        """What a function with this body returns in the page."""
        return self._ask("POST", "/execute/sync", {"script": script, "args": list(arguments)})

    def devtools(self, command: str, **parameters: Any) -> Any:
        """Send a command of Chromium's own protocol."""
        return self._ask("POST", "/goog/cdp/execute", {"cmd": command, "params": parameters})

    def frame(self, css: str | None) -> None:
        """Look into this frame from now on; None: into the window."""
        if css is None:
            self._ask("POST", "/frame", {"id": None})
        else:
            self._ask("POST", "/frame", {"id": self._until(lambda: self._css(css), f"a frame {css}")})

    def _css(self, css: str) -> Any:
        return self.run("return document.querySelector(arguments[0])", css)

    def _until(self, look: Callable[[], Any], what: str, patience_s: float = PATIENCE_S) -> Any:
        """What ``look`` returns once that is true; other processes do not say when."""
        deadline_s, pause = time.monotonic() + patience_s, threading.Event()
        problem = ""
        while time.monotonic() < deadline_s:
            try:
                if found := look():
                    return found
            except BrowserError as err:  # it was replaced at this very moment
                problem = str(err)
            pause.wait(0.05)
        raise AssertionError(f"There is no {what} after {patience_s} s. {problem}\n{self.text()}\n{self.log()}")

    def find(self, kind: str, name: str, *, patience_s: float = PATIENCE_S) -> Any:
        """The element that a user would call so; ``name*``: whose name contains that."""
        return self._until(lambda: self.run(_FIND, kind, name), f"{kind} {name!r}", patience_s)

    def sees(self, kind: str, name: str) -> bool:
        """Whether it is there now."""
        return self.run(_FIND, kind, name) is not None

    def wait_gone(self, kind: str, name: str, *, patience_s: float = PATIENCE_S) -> None:
        """Wait until it is not there."""
        self._until(lambda: not self.sees(kind, name), f"end of {kind} {name!r}", patience_s)

    def wait(self, script: str, *arguments: Any, patience_s: float = PATIENCE_S) -> Any:
        """Wait until what a function with this body returns in the page is true."""
        return self._until(lambda: self.run(script, *arguments), f"success of {script!r}", patience_s)

    def click(self, kind: str, name: str) -> None:
        """Click it as a user does: it has to be there, in reach and enabled."""

        def clicked() -> bool:
            element = self.run(_FIND, kind, name)
            if element is None or not self._ask("GET", f"/element/{element[_ELEMENT]}/enabled"):
                return False
            self._ask("POST", f"/element/{element[_ELEMENT]}/click")
            return True

        self._until(clicked, f"{kind} {name!r} to click")

    def type(self, name: str, text: str) -> None:
        """Type into a field, in place of what is there."""
        element = self.find("field", name)[_ELEMENT]
        self._ask("POST", f"/element/{element}/clear")
        self._ask("POST", f"/element/{element}/value", {"text": text})

    def select(self, name: str, value: str) -> None:
        """Choose the option with this value, as keys do."""
        script = (
            "const [field, value] = arguments; field.value = value;"
            "field.dispatchEvent(new Event('change', {bubbles: true})); return field.value === value"
        )
        assert self.run(script, self.find("field", name), value), (name, value)

    def key(self, key: str) -> None:
        """Press a key where the focus is."""
        actions = [{"type": "keyDown", "value": key}, {"type": "keyUp", "value": key}]
        self._ask("POST", "/actions", {"actions": [{"type": "key", "id": "keys", "actions": actions}]})

    def text(self) -> str:
        """What is read in the page."""
        return str(self.run("return document.body.innerText"))

    def log(self) -> list[str]:
        """What the browser has said since it was asked last: errors of scripts, what its policy has refused."""
        return [entry["message"] for entry in self._ask("POST", "/se/log", {"type": "browser"})]

    def resize(self, width: int, height: int) -> None:
        """Make the view as large as that of a telephone, for example."""
        self.devtools(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )

    def screenshot(self, path: Path) -> None:
        """Write what is seen as PNG."""
        path.write_bytes(base64.b64decode(self._ask("GET", "/screenshot")))


@contextlib.contextmanager
def driver() -> Iterator[Driver]:
    """A chromedriver, and at the end neither it nor its files."""
    directory = Path(tempfile.mkdtemp(prefix="vb-browser-", dir="/tmp"))
    try:
        started = Driver(directory)
        try:
            yield started
        finally:
            started.close()
    finally:
        shutil.rmtree(directory, ignore_errors=True)
