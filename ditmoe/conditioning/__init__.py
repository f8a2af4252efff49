"""Conditioning: the value `Condition`, and the modules that embed it.

Batches, the sampler, pipelines and stored latents pass a `Condition` on without interpreting it. Only the model's
`Conditioning`, one of `configs/conditioning/`, interprets it: it embeds conditions, and makes them from command
options. Class labels are one kind; text is another.
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
