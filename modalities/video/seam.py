"""Where given frames meet new ones: what the decoder misses of the given, it most likely misses beside them, too."""

import numpy as np
from jaxtyping import Bool, Float, UInt8


def smooth_seams(
    samples: UInt8[np.ndarray, "S T H W 3"],
    frames: UInt8[np.ndarray, "T H W 3"],
    given: Bool[np.ndarray, " T"],
) -> UInt8[np.ndarray, "S T H W 3"]:
    """Decoded samples whose new frames beside given ones are corrected by the error of these.

    A decoder's errors (frame - decoded) of neighbouring frames are alike where little moves, so that putting back given
    frames makes a step that the clip does not have. How alike they are is read off the given frames of the sample,

        r = sum <e_t, e_t+1> / sum (|e_t|^2 + |e_t+1|^2) / 2,   cut off at 0 and 1,

    and a new frame gets the best linear guess of its own error: r e of one given neighbour, r (e + e') / (1 + r^2) of
    two (of a first-order autoregression). Without neighbours among the given frames r is 0, and nothing is changed.

    Args:
        samples: decoded, before the given frames are put back.
        frames: the given ones in their places; others are not read.
        given: which frames are given as a whole.
    """
    pairs = np.flatnonzero(given[:-1] & given[1:]).tolist()
    beside = [t for t in np.flatnonzero(~given).tolist() if given[max(0, t - 1) : t + 2].any()]
    if not pairs or not beside:
        return samples
    smooth = samples.copy()
    for sample in smooth:  # one at a time, for memory
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
