"""The interactive view of new samples, as a page in a frame: clouds turn, videos play, images enlarge.

It uses the scripts and the protections of `ditmoe.report`: it loads nothing, and names are shown as plain text.
"""

from collections.abc import Sequence
from pathlib import Path

from ditmoe.modality import Files
from ditmoe.reporting.budget import Budget
from ditmoe.reporting.page import page
from ditmoe.reporting.samples import sample_sets

LARGEST = 16_000_000
"""Most bytes of samples on one page."""
SCRIPTS = ("dom.js", "cloud.js", "media.js", "samples.js", "drawn.js")
STYLES = ("report.css", "drawn.css")


def page_of(folder: Path, kind: type[Files], classes: Sequence[str], most: int) -> str:
    """The HTML of the samples in a folder that `Drawer.draw` wrote."""
    sets = sample_sets(folder, kind, classes, most, Budget(LARGEST))
    return page({"runs": [{"name": "drawn", "sets": sets, "progress": []}]}, SCRIPTS, STYLES)
