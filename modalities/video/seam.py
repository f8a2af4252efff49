"""Seams between given and new frames: the decoder's error on given frames predicts that on their neighbours."""

import numpy as np
from jaxtyping import Bool, Float, UInt8


def smooth_seams(
    samples: UInt8[np.ndarray, "S T H W 3"],
    frames: UInt8[np.ndarray, "T H W 3"],
    given: Bool[np.ndarray, " T"],
) -> UInt8[np.ndarray, "S T H W 3"]:
    """Correct new frames beside given ones by the decoder's error on the given frames.

    A decoder's errors (frame - decoded) on neighbouring frames are similar where little moves, so putting back the
    given frames would make a visible step. Their similarity is estimated from the given frames of the sample,

        r = sum <e_t, e_t+1> / sum (|e_t|^2 + |e_t+1|^2) / 2,   clipped to [0, 1],

    and a new frame gets the best linear estimate of its own error: r e from one given neighbour, r (e + e') / (1 + r^2)
    from two (for a first-order autoregression). If no two given frames are neighbours, r is 0 and nothing changes.

    Args:
        samples: decoded, before the given frames are put back.
        frames: the given frames in their places; others are not read.
        given: which frames are given as a whole.
    """
    pairs = np.flatnonzero(given[:-1] & given[1:]).tolist()
    beside = [t for t in np.flatnonzero(~given).tolist() if given[max(0, t - 1) : t + 2].any()]
    if not pairs or not beside:
        return samples
    smooth = samples.copy()
    for sample in smooth:  # one at a time, to bound memory
        errors = {t: frames[t].astype(np.float32) - sample[t] for t in np.flatnonzero(given).tolist()}
        r = likeness([(errors[t], errors[t + 1]) for t in pairs])
        for t in beside:
            near = [errors[n] for n in (t - 1, t + 1) if n in errors]
            weight = r if len(near) == 1 else r / (1 + r * r)
            sample[t] = (sample[t] + weight * sum(near)).round().clip(0, 255)
    return smooth


def likeness(pairs: list[tuple[Float[np.ndarray, "H W 3"], Float[np.ndarray, "H W 3"]]]) -> float:
    """r of `smooth_seams`."""
    both = sum(float((a * b).sum()) for a, b in pairs)
    power = sum(float((a * a + b * b).sum()) for a, b in pairs) / 2
    return min(1.0, max(0.0, both / power)) if power else 0.0
