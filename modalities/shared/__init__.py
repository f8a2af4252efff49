"""Modality-independent code: patches, data sets, set distances, caches, isolated processes, contact sheets."""

from typing import TYPE_CHECKING

from ditmoe.lazy import lazily

if TYPE_CHECKING:
    from modalities.shared.contact_sheet import enlarged, lay_out, save_png, save_sheet, show
    from modalities.shared.patches import patchify, sincos, unpatchify

__all__ = [
    "enlarged",
    "lay_out",
    "patchify",
    "save_png",
    "save_sheet",
    "show",
    "sincos",
    "unpatchify",
]
__getattr__ = lazily(
    __name__,
    {
        "modalities.shared.contact_sheet": ["enlarged", "lay_out", "save_png", "save_sheet", "show"],
        "modalities.shared.patches": ["patchify", "sincos", "unpatchify"],
    },
)
