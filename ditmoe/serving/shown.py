"""What was drawn, as a page within the page: clouds turn, clips play, pictures enlarge, and it loads nothing.

It is what `ditmoe.report` shows of a run's samples, with the same guards: names are text, whatever they say.
"""

from collections.abc import Sequence
from pathlib import Path

from ditmoe.modality import Files
from ditmoe.reporting.budget import Budget
from ditmoe.reporting.page import page
from ditmoe.reporting.samples import sample_sets

LARGEST = 16_000_000
"""Bytes of the samples on one page."""
SCRIPTS = ("dom.js", "cloud.js", "media.js", "samples.js", "drawn.js")
STYLES = ("report.css", "drawn.css")


def page_of(folder: Path, kind: type[Files], classes: Sequence[str], most: int) -> str:
    """The page of the samples in a folder that `Drawer.draw` wrote."""
    sets = sample_sets(folder, kind, classes, most, Budget(LARGEST))
    return page({"runs": [{"name": "drawn", "sets": sets, "progress": []}]}, SCRIPTS, STYLES)
