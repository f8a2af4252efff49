"""The contract between the core and a modality: everything the core may know about the generated data."""

from ditmoe.modality.contracts import (
    Captions,
    CodecTraining,
    Contract,
    Encoding,
    Files,
    GivenParts,
    Metric,
    NativeSizes,
    Preparation,
    PublishedAutoencoder,
    Surfaces,
    Turntables,
)
from ditmoe.modality.modality import Asked, Modality, Reader
from ditmoe.modality.samples import Report, Samples, Shown
from ditmoe.modality.tokens import Tokens
from ditmoe.outside import check_number
from ditmoe.outside.options import check_options

__all__ = [
    "Asked",
    "Captions",
    "CodecTraining",
    "Contract",
    "Encoding",
    "Files",
    "GivenParts",
    "Metric",
    "Modality",
    "NativeSizes",
    "Preparation",
    "PublishedAutoencoder",
    "Reader",
    "Report",
    "Samples",
    "Shown",
    "Surfaces",
    "Tokens",
    "Turntables",
    "check_number",
    "check_options",
]
