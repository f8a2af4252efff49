"""What has no modality: patches, distances between sets of features, contact sheets."""

from modalities.shared.contact_sheet import lay_out, save_png
from modalities.shared.patches import patchify, sincos, unpatchify

__all__ = [
    "lay_out",
    "patchify",
    "save_png",
    "sincos",
    "unpatchify",
]
