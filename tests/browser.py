"""Chromium, told by its own protocol through a pipe what a person would do; nothing but the browser is needed."""

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Browser:
    """One tab without a screen. It reaches 127.0.0.1 alone, and keeps the addresses that its pages asked for.

    Args:
        profile: an empty folder for it.
        width, height: of the window.
    """

    def __init__(self, profile: Path, width: int = 1280, height: int = 900) -> None:
        read, self._out = self._pipe()
        self._in, write = self._pipe()
        words = [str(BROWSER), "--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe",
                 "--no-first-run", "--disable-background-networking", "--disable-component-update",
                 "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1", f"--user-data-dir={profile}",
                 "about:blank"]  # fmt: skip
        shell = f'exec "$@" 3<&{read} 4>&{write}'
        self._process = subprocess.Popen(
            ["bash", "-c", shell, "bash", *words], pass_fds=(read, write), stderr=subprocess.DEVNULL
        )
        os.close(read)
        os.close(write)
        self._buffer, self._number, self._session = b"", 0, None
        self.asked: list[str] = []
        self.errors: list[str] = []
        target = self.send("Target.getTargets")["targetInfos"]
        own = next(each["targetId"] for each in target if each["type"] == "page")
        self._session = self.send("Target.attachToTarget", targetId=own, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log", "DOM"):
            self.send(f"{domain}.enable")
        self.resize(width, height)

    @staticmethod
    def _pipe() -> tuple[int, int]:
        """A pipe with numbers from 10 on, since 3 and 4 are those that the browser reads and writes."""
        ends = os.pipe()
        above = (
            fcntl.fcntl(ends[0], fcntl.F_DUPFD_CLOEXEC, 10),
            fcntl.fcntl(ends[1], fcntl.F_DUPFD_CLOEXEC, 10),
        )
        for end in ends:
            os.close(end)
        return above

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(20)
        os.close(self._in)
        os.close(self._out)

    def send(self, method: str, **words: Any) -> dict[str, Any]:
        """Call a method of the protocol; its answer."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": words}
        message |= {"sessionId": self._session} if self._session else {}
        os.write(self._out, json.dumps(message).encode() + b"\0")
        number = self._number
        while (answer := self._next(60)).get("id") != number:
            pass
        assert "error" not in answer, answer
        return answer["result"]

    def _next(self, seconds: float) -> dict[str, Any]:
        end = time.monotonic() + seconds
        while b"\0" not in self._buffer:
            assert select.select([self._in], [], [], max(0.0, end - time.monotonic()))[0], "no answer"
            found = os.read(self._in, 2**20)
            assert found, "the browser has ended"
            self._buffer += found
        text, _, self._buffer = self._buffer.partition(b"\0")
        message = json.loads(text)
        told = message.get("params", {})
        if message.get("method") == "Network.requestWillBeSent":
            self.asked.append(told["request"]["url"])
        elif message.get("method") == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(told["exceptionDetails"])[:400])
        elif message.get("method") == "Log.entryAdded" and told["entry"]["level"] == "error":
            self.errors.append(f"{told['entry']['text']} {told['entry'].get('url', '')}")
        return message

    def resize(self, width: int, height: int) -> None:
        """Another size of the window; a narrow one is a telephone's."""
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1,
                  mobile=width < 600)  # fmt: skip

    def open(self, address: str) -> None:
        """Go to a page."""
        self.send("Page.navigate", url=address)

    def value(self, script: str) -> Any:
        """Of an expression, in the page."""
        done = self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    def until(self, script: str, seconds: float = 60) -> None:
        """Wait until an expression holds."""
        end = time.monotonic() + seconds
        while not self.value(f"Boolean({script})"):
            assert time.monotonic() < end, (
                f"never: {script}\n{self.value('document.body.innerText')}\n{self.errors}"
            )
            time.sleep(0.1)

    def click(self, selector: str) -> None:
        """Click on the middle of an element, as a mouse does."""
        script = (
            f"(() => {{ const e = document.querySelector({selector!r}); e.scrollIntoView({{block: 'center'}}); "
            "const r = e.getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2]; })()"
        )
        place, before = self.value(script), None
        while place != before:  # as long as the page moves
            time.sleep(0.1)
            place, before = self.value(script), place
        for kind in ("mousePressed", "mouseReleased"):
            self.send(
                "Input.dispatchMouseEvent", type=kind, x=place[0], y=place[1], button="left", clickCount=1
            )

    def fill(self, selector: str, text: str) -> None:
        """Put text into a field, in place of what stands there."""
        self.click(selector)
        self.value(f"document.querySelector({selector!r}).select()")
        self.send("Input.insertText", text=text)
        self.value(f"document.querySelector({selector!r}).blur()")

    def choose_file(self, selector: str, *files: Path) -> None:
        """Put files into a field for them."""
        root = self.send("DOM.getDocument")["root"]["nodeId"]
        node = self.send("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.send("DOM.setFileInputFiles", nodeId=node, files=[str(file) for file in files])

    def picture(self, file: Path, whole: bool = True) -> None:
        """What is seen, or the page from its top to its end."""
        data = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=whole)["data"]
        file.write_bytes(base64.b64decode(data))
