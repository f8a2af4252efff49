"""What `benchmarks.quality.text` counts: nearly all of real samples, next to nothing of captions that are others'."""

import numpy as np

from benchmarks.quality.clip_reading import of_clips, reader_of_clips
from ditmoe.conditioning import captions_of
from modalities.video.data.moving_digits import MovingDigits


def test_which_digit_moves_where_is_read_off_real_clips() -> None:
    data = MovingDigits((32, 32), 9, captions=True)
    real = data.reference("test", 16)
    assert real.asked is not None
    captions, reader = captions_of(real.asked) or [], reader_of_clips(data, num=60)
    own = of_clips(real.data, captions, reader)
    other = of_clips(real.data, [*captions[1:], captions[0]], reader)
    assert own["ways"].mean() == 1
    assert own["bound"].mean() >= 0.8
    assert other["bound"].mean() <= 0.2
    exchanged = [_with_ways_exchanged(caption) for caption in captions]
    differs = np.array([a != b for a, b in zip(captions, exchanged, strict=True)])
    assert of_clips(real.data, exchanged, reader)["bound"][differs].mean() <= 0.2


def _with_ways_exchanged(caption: str) -> str:
    first, second = caption.split(" and ")
    (a, way_a), (b, way_b) = first.split(" moving "), second.split(" moving ")
    return f"{a} moving {way_b} and {b} moving {way_a}"
