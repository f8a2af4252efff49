"""What is asked for: one value, `Condition`, and the modules that embed it.

A batch, the sampler, a pipeline and latents on disk hand a `Condition` on without looking into it. The model's
`Conditioning`, one of `configs/conditioning/`, knows what it means: it embeds it, and makes one from the words of a
command. Class labels are one kind; text is another.
"""

from ditmoe.conditioning.base import Conditioning, Embedded
from ditmoe.conditioning.captions import TEXT, captions_of, class_caption, split_words, text_rows
from ditmoe.conditioning.class_label import ClassLabel, label_index, label_of, make_labels
from ditmoe.conditioning.condition import GUIDANCE, SHOWN, SPAN, Condition

__all__ = [
    "GUIDANCE",
    "SHOWN",
    "SPAN",
    "TEXT",
    "ClassLabel",
    "Condition",
    "Conditioning",
    "Embedded",
    "captions_of",
    "class_caption",
    "label_index",
    "label_of",
    "make_labels",
    "split_words",
    "text_rows",
]
