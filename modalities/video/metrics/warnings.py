"""Protocol lines of a report, and warnings about video metrics that could be misread."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from ditmoe.modality import Report, Samples
from modalities.video.metrics.clip_sets import Side
from modalities.video.metrics.memorisation import COPY
from modalities.video.metrics.motion import TOLD
from modalities.video.metrics.protocol import Protocol


def protocol(
    sets: Mapping[str, Side],
    chosen: Protocol,
    identity: Mapping[str, str],
    rows: Mapping[str, Mapping[str, float]],
    seed: int,
    seams: Sequence[int] | None = None,
    digits: int | None = None,
) -> dict[str, Any]:
    """What was compared and how, including hashes of the sets."""
    out: dict[str, Any] = dict(identity)
    for role, side in sets.items():
        told = [f"{len(side)} clips of {_sizes(side)}", f"lossy: {_lossy(side)}"]
        told += [f"left out: {count} {reason}" for reason, count in side.left.items()]
        told += [f"missing: {side.missing} of num"] if side.missing else []
        out[role] = ", ".join([*told, f"SHA-256 {side.digest[:32]}"])
    starts = [f"{start} start of {side}" for side, start in chosen.starts.items()]
    if len(set(chosen.starts.values())) == 1:
        starts = [f"{chosen.starts['generated']} start"]
    out["clips"] = f"{chosen.frames} frames, every {chosen.stride} of both sides alike, {', '.join(starts)}"
    out["videos"] = "the first by name" if chosen.choice == "first" else "drawn by seed"
    out["covariance"] = f"divided by S{f' - {chosen.ddof}' if chosen.ddof else ''}, float64"
    out |= {"colours": "0 to 255 as -1 to 1", "seed": seed}
    if chosen.differences:
        out["preset"] = f"{chosen.name}, but: {'; '.join(chosen.differences)}"
    jerk, warp = (float(sets["reference"].of(name).mean()) for name in ("jerk", "warp"))
    out["movement"] = f"{TOLD}; of real clips {jerk:.3g} pixels and {warp:.3g} of 255"
    if seams:
        out["seams"] = (
            f"before frames {', '.join(map(str, seams))} of each generated video, over all steps of real clips"
        )
    if digits is not None:
        out["laws"] = f"of two digits {digits} pixels large, see modalities.video.metrics.digit_laws"
    if quality := rows.get("autoencoder"):
        found = [
            f"{quality['psnr']:.2f} dB PSNR",
            *([f"{quality['ssim']:.4f} SSIM"] if "ssim" in quality else []),
        ]
        out["autoencoder"] = (
            f"{', '.join(found)} of the reference, see modalities.video.metrics.reconstruction"
        )
    return out


def check_lossless(generated: Samples, reference: Samples) -> None:
    """Raise ValueError if files of either side may be lossy."""
    for role, data in {"generated": generated, "reference": reference}.items():
        if lossy := getattr(data, "lossy", 0):
            raise ValueError(
                f"{lossy} of the {len(data)} {role} files may be lossy, and compression on one side alone costs as "
                "much as models differ by: measure FFV1, PNG frames or npz, or say modality.evaluation.lossy=true"
            )


def warnings(
    report: Report, sets: Mapping[str, Side], bias: float, width: int, ways: Mapping[str, np.ndarray]
) -> list[str]:
    """Warnings for a report, the most important first.

    Args:
        bias: bias of the Fréchet distance, by the jackknife.
        width: number of features.
        ways: see `memorisation.values`.
    """
    return [*_about_copies(sets, ways), *_about_counts(report, sets, bias, width), *_about_sets(sets)]


def _about_copies(sets: Mapping[str, Side], ways: Mapping[str, Float[np.ndarray, " _"]]) -> list[str]:
    notes = []
    digests = {role: [clip.digest for clip in side.clips] for role, side in sets.items()}
    held = set(digests["reference"])
    copies, num = sum(digest in held for digest in digests["generated"]), len(digests["generated"])
    if copies == num:
        notes.append(
            "every generated clip is an exact copy of a reference clip: a set measured against itself tells nothing "
            "about a model"
        )
    elif copies:
        notes.append(f"{copies} of {num} generated clips are exact copies of reference clips")
    for role, each in digests.items():
        if repeated := len(each) - len(set(each)):
            notes.append(
                f"{repeated} of {len(each)} {role} clips are exact copies of another {role} clip: a set that is "
                "repeated counts for no more than its different clips"
            )
    for role, meaning in {"generated": "memorised", "reference": "not held out"}.items():
        if role in ways and (same := int((ways[role] < COPY).sum())):
            notes.append(f"{same} of {len(ways[role])} {role} clips are copies of training clips: {meaning}")
    return notes


def _about_counts(report: Report, sets: Mapping[str, Side], bias: float, width: int) -> list[str]:
    notes = []
    name = next(iter(report.values))
    value, counts = report.values[name], {role: len(sets[role]) for role in ("generated", "reference")}
    few = {role: count for role, count in counts.items() if count <= width}
    if few:
        told = " and ".join(f"{count} {role}" for role, count in few.items())
        notes.append(
            f"{told} clips are no more than the {width} features: {name} is far too high, by an amount that depends "
            "on the counts; compare it with equal counts, and with the floor"
        )
    elif bias > 0.05 * value:
        notes.append(f"about {bias:.3g} of {name} {value:.3g} is bias of the small sets (jackknife)")
    if name.startswith("fvd") and counts["generated"] != 2048:
        notes.append(f"published tables take 2,048 clips, not {counts['generated']}")
    novelty = report.values.get("novelty", 1.0)
    chance = (0.9 * 0.1 * sum(1 / count for count in counts.values())) ** 0.5  # the limit is estimated, too
    if novelty < 0.9 - 3 * chance:
        notes.append(
            f"{1 - novelty:.0%} of the generated clips lie nearer to the training clips than 90 % of the held-out "
            "ones do: a sign of memorisation"
        )
    if name == "fd/pixels":
        notes.append(
            "fd/pixels compares colours, layout and change, no texture and no meaning: never with FVD"
        )
    return notes


def _about_sets(sets: Mapping[str, Side]) -> list[str]:
    notes = []
    if not sets["reference"].of("flicker").any():
        notes.append("nothing moves in the reference: there are no ratios to it")
    for role, side in sets.items():
        if side.missing:
            notes.append(f"{role} has {side.missing} clips fewer than num asks for; none is taken twice")
        broken = {reason: count for reason, count in side.left.items() if reason != "by num"}
        if broken:
            told = ", ".join(f"{count} {reason}" for reason, count in broken.items())
            notes.append(f"{role} videos were left out: {told}; those that are left may be of another kind")
        if side.lossy:
            notes.append(
                f"{side.lossy} of the {role} files may be lossy: compression on one side alone costs FVD about as much "
                "as models differ by"
            )
    sizes = {role: _sizes(side) for role, side in sets.items() if role != "train"}
    if len(set(sizes.values())) > 1:
        notes.append(f"sizes differ ({sizes}): sharpness alone tells the sets apart")
    return notes


def _sizes(side: Side) -> str:
    count = Counter(clip.size for clip in side.clips)
    (height, width), *_ = [size for size, _ in count.most_common()]
    more = f" mostly, of {len(count)} sizes" if len(count) > 1 else ""
    return f"{height} x {width}{more}"


def _lossy(side: Side) -> str:
    if side.lossy is None:
        return "not known"
    return f"yes, {side.lossy}" if side.lossy else "no"
