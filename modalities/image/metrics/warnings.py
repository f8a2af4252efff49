"""Warnings about image metrics that could be misread."""

from collections.abc import Mapping
from dataclasses import replace
from hashlib import sha256

import numpy as np

from ditmoe.modality import Report, Samples
from modalities.image.metrics.inception_weights import PORT_SHA256
from modalities.shared.decode import LOSSY, STILLS


def warnings(report: Report, sets: Mapping[str, Samples], biases: Mapping[str, float], num: int) -> list[str]:
    """Warnings for a report of these sets, the most important first.

    Args:
        sets: image sets by role; "reference" is missing if only its statistics are known.
        biases: name of a distance -> its bias, by the jackknife.
        num: number of features.
    """
    return [*_about_copies(sets), *_about_protocol(report, sets), *_about_counts(report, sets, biases, num)]


def about_compression(report: Report, generated: Samples, reference: Samples) -> Report:
    """Add a line on how many images of each set come from lossy files, as far as their names tell.

    Also a note if only one set does and both are unprocessed files; JPEG at quality 75 costs as much FID as models
    differ by. Real images that were shrunk for training have lost most artefacts, as in published tables.
    """
    sides = {"generated": generated, "reference": reference}
    lossy = {role: sum(name.lower().endswith(LOSSY) for name in of.names or ()) for role, of in sides.items()}
    if not any(lossy.values()):
        return report
    words = ", ".join(f"{lossy[role]} of {len(of)} {role} images" for role, of in sides.items())
    protocol = {**report.protocol, "from lossy files": words}
    files = any(name.lower().endswith((*STILLS, ".gif")) for name in generated.names or ())
    if all(lossy.values()) or not files:
        return replace(report, protocol=protocol)
    note = f"compression on one side alone tells the sets apart: {words} come from JPEG or the like"
    return replace(report, protocol=protocol, notes=[note, *report.notes])


def _about_copies(sets: Mapping[str, Samples]) -> list[str]:
    seen = {role: _digests(of.data) for role, of in sets.items() if role != "oracle"}
    notes = []
    if "reference" in seen:
        copies = sum(digest in set(seen["reference"]) for digest in seen["generated"])
        if copies == len(seen["generated"]):
            notes.append(
                "every generated image is an exact copy of a reference image: a set measured against itself tells "
                "nothing about a model"
            )
        elif copies:
            notes.append(f"{copies} generated images are exact copies of reference images")
    for role, meaning in (("generated", "memorised"), ("reference", "not held out")):
        if role in seen and "train" in seen:
            copies = sum(digest in set(seen["train"]) for digest in seen[role])
            notes += (
                [f"{copies} {role} images are exact copies of training images: {meaning}"] if copies else []
            )
    return notes


def _digests(images: np.ndarray) -> list[bytes]:
    return [sha256(repr(image.shape).encode() + image.tobytes()).digest() for image in images]


def _about_protocol(report: Report, sets: Mapping[str, Samples]) -> list[str]:
    notes = []
    resize, digest = report.protocol.get("resize"), report.protocol.get("weights")
    if "fd/pixels" in report.values:
        notes.append(
            "fd/pixels compares colours and coarse layout (8 x 8 areas), no texture and no meaning: compare it with "
            "its floor and with other runs on the same reference, never with FID"
        )
    if resize in ("adm", "clean", "pytorch-fid") and digest != PORT_SHA256:
        notes.append(
            "the Inception weights are not byte for byte the published port's file (the graph, or saved anew): "
            "compare with other numbers only if they hold the same values"
        )
    if resize in ("clean", "pytorch-fid") and "reference statistics" in report.protocol:
        notes.append(
            f"the reference file does not say how its images were resized, and these were by {resize}: ADM's files "
            "are made with adm, and another resize moves FID by itself"
        )
    if "fid/adm" in report.values and "sfid/adm" not in report.values:
        notes.append("the reference file has no mu_s and sigma_s, so there is no sFID")
    sizes = {role: of.data.shape[1:3] for role, of in sets.items() if role in ("generated", "reference")}
    if len(set(sizes.values())) > 1:
        a, b = ("{} x {}".format(*sizes[role]) for role in ("generated", "reference"))
        notes.append(f"generated images are {a}, reference images {b}: sharpness alone tells them apart")
    return notes


def _about_counts(
    report: Report, sets: Mapping[str, Samples], biases: Mapping[str, float], num: int
) -> list[str]:
    notes = []
    counts = {role: len(sets[role]) for role in ("generated", "reference") if role in sets}
    if "reference statistics" in report.protocol:
        counts.pop("reference", None)
    name = next(name for name in report.values if name.startswith(("fid/", "fd/")))
    few = {role: count for role, count in counts.items() if count <= num}
    if few:
        notes.append(
            f"{' and '.join(f'{count} {role}' for role, count in few.items())} images are fewer than the {num} "
            f"features: {name} is far too high, by an amount that depends on the counts; compare it with equal counts"
        )
    elif biases.get(name, 0) > 0.05 * report.values[name]:
        notes.append(
            f"about {biases[name]:.3g} of {name} {report.values[name]:.3g} is bias of the small sets (jackknife): it "
            "falls as one over the number of images"
        )
    if name == "fid/adm" and counts["generated"] != 50_000:
        notes.append(f"published tables take 50,000 generated images, not {counts['generated']}")
    floor, (low, _) = report.rows.get("floor"), report.intervals.get(name, (np.nan, np.nan))
    if "reference" not in sets:
        notes.append(
            "the reference brings no images, so there is no floor, no kernel distance, no precision or recall"
        )
    elif floor is not None and low > floor[name]:
        notes.append(f"{name} lies above the floor, as far as chance goes: the sets differ")
    if "is" in report.values and counts["generated"] < 5000:
        notes.append(
            f"is is low for want of images: {counts['generated']} in a single split instead of 5,000"
        )
    if not any(key.startswith("precision") for key in report.values) and "reference" in sets:
        notes.append(
            f"too few images for precision and recall, which need more than k = {report.protocol['k']}"
        )
    return notes
