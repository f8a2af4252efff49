"""The page in a browser, where there is one: clouds turn, clips play, filters filter, strangers' words do nothing."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from ditmoe.reporting import write_report
from tests.reporting.runs import make_run

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
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
