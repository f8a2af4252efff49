"""The page: one file without links to others, that runs no script but ditmoe's own, whoever made the run."""

import base64
import hashlib
import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ditmoe.checkpoint import replacing
from ditmoe.checkpoint.atomic import check_writable
from ditmoe.config.trust import Trust
from ditmoe.outside import Patience, check_number, printable
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
LARGEST = 18_000_000
"""Bytes of what is shown of all runs; the page has a hundred thousand more."""
MOST_RUNS, MOST_SAMPLES = 8, 1000


def write_report(
    runs: Sequence[str | Path],
    out: str | Path | None = None,
    samples: int = 64,
    trust: Trust = False,
    kind: type[Any] | None = None,
) -> Path:
    """Write runs onto a page, whole or not at all; returns its path.

    The same runs give the same bytes.

    Args:
        runs: folders.
        out: the file; by default report.html, in the folder of the run if it is one.
        samples: of each run, at most.
        trust: classes of other packages that may show samples, see `ditmoe.config.trust`.
        kind: the modality of all of them, if that is known.

    Raises:
        ValueError, OSError: one line, if one is no run, or the file cannot be written.
    """
    folders = list(dict.fromkeys(map(Path, runs)))
    check_number("samples", samples, 0, MOST_SAMPLES, whole=True)
    check_number("the number of runs", len(folders), 1, MOST_RUNS, whole=True)
    check_runs(folders)
    file = Path(out) if out is not None else (folders[0] if len(folders) == 1 else Path()) / "report.html"
    if file.is_dir():
        raise ValueError(f"out must be a file, such as {printable(file / 'report.html')}, got a folder")
    check_writable(file)
    share = LARGEST // len(folders)
    told = [
        describe_run(folder, name, Budget(share), samples, trust, kind, Patience(SECONDS / len(folders)))
        for folder, name in zip(folders, names_of(folders), strict=True)
    ]
    text = page({"runs": told})
    with replacing(file) as stream:
        stream.write(text.encode())
    return file


def page(content: dict[str, Any], scripts: Sequence[str] = SCRIPTS, styles: Sequence[str] = STYLES) -> str:
    """The page of what is to be shown, which is data alone: only scripts and styles with these digests are obeyed.

    Args:
        content: `runs`, each with what the scripts look for.
        scripts, styles: names of files of the package; the last script puts the page together.
    """
    sheets = [asset(name) for name in styles]
    script = "\n".join(asset(name) for name in scripts)
    policy = "; ".join(
        [
            "default-src 'none'",
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
            "<noscript>This page is drawn by its script: allow scripts to see it. It loads nothing.</noscript>",
            '<div id="page"></div>',
            f'<script type="application/json" id="data">{encoded(content)}</script>',
            f"<script>{script}</script>",
            "</body>",
            "</html>",
            "",
        ]
    )


def asset(name: str) -> str:
    """A file of the package."""
    return (ASSETS / name).read_text(encoding="utf-8")


def _source(text: str) -> str:
    """How a policy names a script or a style by what is in it."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
