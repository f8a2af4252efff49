"""The report page: one self-contained file that runs only ditmoe's scripts, also for untrusted runs."""

import base64
import hashlib
import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ditmoe.checkpoint import replacing
from ditmoe.checkpoint.atomic import check_writable
from ditmoe.config.trust import Trust
from ditmoe.outside import Patience, check_number, check_ours, printable
from ditmoe.outside.patience import SECONDS
from ditmoe.reporting.budget import Budget, encoded
from ditmoe.reporting.run import check_runs, describe_run, names_of

ASSETS = Path(__file__).with_name("assets")
STYLES = ("uPlot.min.css", "report.css")
PLOTS = "uPlot.iife.min.js"
SCRIPTS = (
    PLOTS,
    "dom.js",
    "cloud.js",
    "media.js",
    "samples.js",
    "metrics.js",
    "curves.js",
    "report.js",
)
POLICY = "default-src 'none'"
"""The beginning of the policy of every page."""
LARGEST = 18_000_000
"""Most bytes of data of all runs; scripts and styles add a hundred thousand."""
MOST_RUNS, MOST_SAMPLES = 8, 1000


def write_report(
    runs: Sequence[str | Path],
    out: str | Path | None = None,
    samples: int = 64,
    trust: Trust = False,
    kind: type[Any] | None = None,
) -> Path:
    """Write a report of runs, completely or not at all; returns its path. The same runs give the same bytes.

    Args:
        runs: their folders.
        out: the file; None: report.html, in the run's folder if there is only one.
        samples: most samples of each run.
        trust: classes of other packages that may show samples, see `ditmoe.config.trust`.
        kind: the modality of all runs; None: as recorded in each run.

    Raises:
        ValueError, OSError: with one line, if a folder is not a run, or the file cannot be written.
    """
    folders = list(dict.fromkeys(map(Path, runs)))
    check_number("samples", samples, 0, MOST_SAMPLES, whole=True)
    check_number("the number of runs", len(folders), 1, MOST_RUNS, whole=True)
    check_runs(folders)
    file = Path(out) if out is not None else (folders[0] if len(folders) == 1 else Path()) / "report.html"
    check_page(file, named=out is not None)
    share = LARGEST // len(folders)
    told = [
        describe_run(folder, name, Budget(share), samples, trust, kind, Patience(SECONDS / len(folders)))
        for folder, name in zip(folders, names_of(folders), strict=True)
    ]
    text = page({"runs": told})
    with replacing(file) as stream:
        stream.write(text.encode())
    return file


def check_page(file: Path, named: bool) -> None:
    """Check that the page can be written, and replaces no file of another kind or, unless named, of another program.

    Raises:
        ValueError, OSError: with one line, otherwise.
    """
    if file.is_dir() or file.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"out must be a file of HTML, such as report.html, got {printable(file)}")
    if not named:
        check_ours(file, "page", POLICY.encode(), "name the file to write with out=...")
    check_writable(file)


def page(content: dict[str, Any], scripts: Sequence[str] = SCRIPTS, styles: Sequence[str] = STYLES) -> str:
    """The HTML of a page. Content is embedded as data; its policy allows only these scripts and styles, by digest.

    Args:
        content: `runs`, each with the fields that the scripts read.
        scripts, styles: names of asset files; the last script builds the page.
    """
    sheets = [asset(name) for name in styles]
    script = "\n".join(asset(name) for name in scripts)
    policy = "; ".join(
        [
            POLICY,
            "img-src data:",
            f"style-src {' '.join(map(_source, sheets))}",
            f"script-src {_source(script)}",
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )
    title = ", ".join(run["name"] for run in content["runs"])
    licence = asset("uPlot.LICENSE").strip()
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="color-scheme" content="light dark">',
            '<meta name="referrer" content="no-referrer">',
            '<link rel="icon" href="data:,">',
            f"<title>{html.escape(title)} · ditmoe</title>",
            *([f"<!-- Curves are drawn by uPlot.\n\n{licence}\n-->"] if PLOTS in scripts else []),
            *(f"<style>{style}</style>" for style in sheets),
            "</head>",
            "<body>",
            "<noscript>Allow scripts to see this page. It loads nothing from elsewhere.</noscript>",
            '<div id="page"></div>',
            f'<script type="application/json" id="data">{encoded(content)}</script>',
            f"<script>{script}</script>",
            "</body>",
            "</html>",
            "",
        ]
    )


def asset(name: str) -> str:
    """The text of an asset file."""
    return (ASSETS / name).read_text(encoding="utf-8")


def _source(text: str) -> str:
    """The source expression of a script or style in a Content-Security-Policy."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
