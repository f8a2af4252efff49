"""Contact sheets of clouds."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Num, UInt8

from modalities.pointcloud.viz.render import RGB, class_color, finite, render
from modalities.shared import lay_out
from modalities.shared.contact_sheet import class_of


def contact_sheet(
    clouds: Sequence[Num[np.ndarray, "_ 3"]],
    labels: Sequence[str] | None = None,
    columns: int | None = None,
    cell: int = 160,
    title: str | None = None,
    colors: Sequence[RGB | UInt8[np.ndarray, "_ 3"]] | None = None,
) -> UInt8[np.ndarray, "H W 3"]:
    """Draw many clouds on one labelled sheet, see `modalities.shared.lay_out`.

    Args:
        clouds: 1 to 200 arrays (N, 3); N may differ, and may be 0.
        cell: pixels along the edge of one picture.
        colors: one per cloud, or an array of one per point; by default one per class, by order of appearance.
    Raises:
        ValueError: where there is nothing to draw or the lengths differ.
    """
    labels = [""] * len(clouds) if labels is None else [str(label) for label in labels]
    for name, given in (("clouds", clouds), ("labels", labels), ("colors", colors or clouds)):
        if not 0 < len(given) == len(clouds):
            raise ValueError(
                f"{name} must be one per cloud, at least one; got {len(given)} for {len(clouds)}"
            )
    if colors is None:
        classes = [class_of(label) for label in labels]
        order = list(dict.fromkeys(classes))
        colors = [class_color(order.index(name)) for name in classes]
    kept = [finite(cloud) for cloud in clouds]
    tiles = [render(points, cell, color=color) for points, color in zip(clouds, colors, strict=True)]
    shown = [_label(*of) for of in zip(labels, map(len, clouds), map(len, kept), strict=True)]
    return lay_out(tiles, shown, columns, title)


def _label(label: str, given: int, kept: int) -> str:
    """The label, with a note on points that are not drawn."""
    if kept == given:
        return label if given else f"{label} (empty)".strip()
    return f"{label} ({given - kept if kept else 'all'} not finite)".strip()
