"""The page in a browser, where there is one: clouds turn, clips play, filters filter, strangers' words do nothing."""

import json
import re
import subprocess
import time
from pathlib import Path

import pytest

from ditmoe.reporting import write_report
from tests.browser import BROWSER, Browser
from tests.reporting.runs import make_run

NASTY = (
    "</script><script>document.documentElement.dataset.owned=1</script>",
    "<img src=x onerror=document.documentElement.dataset.owned=1>",
)


def opened(file: Path, profile: Path, seconds: int = 20) -> str:
    """The document as it stands when the page has tried itself (`#selftest`)."""
    done = subprocess.run(
        [str(BROWSER), "--headless=new", "--no-sandbox", "--disable-gpu", "--dump-dom", "--window-size=800,900",
         f"--user-data-dir={profile}", f"--virtual-time-budget={1000 * seconds}", f"{file.as_uri()}#selftest"],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.skipif(BROWSER is None, reason="no Chromium on PATH")
def test_a_browser_shows_all_and_obeys_nobody_else(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / kind, kind, classes=NASTY) for kind in ("pointcloud", "video", "image")]
    # Names that every object of JavaScript has.
    for run, name in zip(runs, ("toString", "__proto__", "constructor"), strict=True):
        measured = {"fd": 1, "oracle": {"fd": 2}, name: {"fd": 3}}
        (run / "metrics.json").write_text(json.dumps(measured))
        (run / "log.jsonl").write_text(
            "".join(json.dumps({"step": i, "loss": i, name: i}) + "\n" for i in (1, 2))
        )
    (runs[0] / "samples" / "prompts.json").write_text(json.dumps({"prompts": [*NASTY] * 2}))
    text = opened(write_report(runs, out=tmp_path / "report.html"), tmp_path / "profile")
    found = re.search(r'data-selftest="([^"]*)"', text)
    assert found, text[-2000:]
    told = json.loads(found[1].replace("&quot;", '"'))
    assert told.pop("charts") >= 3
    assert told.pop("samples") == 12
    assert told.pop("errors") == []
    assert told.pop("wide") is False
    assert told == dict.fromkeys(
        ("cloudDrawn", "cloudTurned", "clipPlayed", "clipPaused", "filtered", "enlarged"), True
    )
    assert "data-owned" not in text


CLOUD, FOCUSED = "document.querySelector('canvas.cloud')", "document.activeElement"


def painted(canvas: str) -> str:
    """An expression of a number of what a canvas shows."""
    data = f"(c => c.getContext('2d').getImageData(0, 0, c.width, c.height).data)({canvas})"
    return f"{data}.reduce((sum, value) => (31 * sum + value) | 0, 0)"


def press(page: Browser, key: str, code: int) -> None:
    """A key."""
    page.send("Input.dispatchKeyEvent", type="keyDown", key=key, code=key, windowsVirtualKeyCode=code)
    page.send("Input.dispatchKeyEvent", type="keyUp", key=key, code=key, windowsVirtualKeyCode=code)


@pytest.mark.skipif(BROWSER is None, reason="no Chromium on PATH")
@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_it_fits_desks_and_telephones_and_obeys_mouse_and_keyboard(
    width: int, theme: str, tmp_path: Path
) -> None:
    runs = [make_run(tmp_path / kind, kind) for kind in ("pointcloud", "video")]
    file = write_report(runs, out=tmp_path / "report.html")
    with Browser(tmp_path / "profile", width) as page:
        media = [{"name": "prefers-color-scheme", "value": theme}]
        page.send("Emulation.setEmulatedMedia", features=media)
        page.open(file.as_uri())
        page.until(CLOUD)
        page.value(f"{CLOUD}.scrollIntoView({{block: 'center', behavior: 'instant'}})")
        page.until(painted(CLOUD))  # 0: nothing
        assert page.value("document.documentElement.scrollWidth") <= width
        colour = page.value("getComputedStyle(document.body).backgroundColor")
        light = sum(map(int, re.findall(r"\d+", colour)[:3])) > 3 * 128
        assert light == (theme == "light"), colour

        time.sleep(0.3)
        before = page.value(painted(CLOUD))
        time.sleep(0.3)
        assert page.value(painted(CLOUD)) == before  # it does not turn by itself
        x, y = page.value(f"(r => [r.x + r.width / 2, r.y + r.height / 2])({CLOUD}.getBoundingClientRect())")
        for kind, along in (("mousePressed", 0), ("mouseMoved", 40), ("mouseReleased", 40)):
            page.send(
                "Input.dispatchMouseEvent",
                type=kind,
                x=x + along,
                y=y,
                button="left",
                buttons=1,
                clickCount=1,
            )
        page.until(f"{painted(CLOUD)} !== {before}")

        press(page, "Tab", 9)
        for _ in range(60):
            if page.value(f"{FOCUSED}.matches('canvas.cloud')"):
                break
            press(page, "Tab", 9)
        page.until(painted(FOCUSED))
        before = page.value(painted(FOCUSED))
        press(page, "ArrowRight", 39)
        page.until(f"{painted(FOCUSED)} !== {before}")
        assert page.errors == []
        assert all(address.startswith(("file:", "data:", "blob:")) for address in page.asked)
