"""The source of latents on disk: clips of the training videos."""

import torch

from ditmoe.conditioning import Condition
from modalities.latent.latent_shards import Source
from modalities.shared.captions import all_of
from modalities.video.data.dataset import Clips


def source_of(data: Clips, starts: int, captions: bool) -> Source:
    """The training videos of a data set.

    Args:
        starts: clips per video, spread evenly over it.
        captions: include all captions of each video besides its class.
    """
    videos, labels = data.split("train"), data.labels("train")
    asked = (
        all_of(labels, map(data.captioner.of, videos))
        if captions
        else Condition.of_labels(torch.from_numpy(labels), len(data.classes))
    )
    return Source(
        "video",
        names=[video.name for video in videos],
        asked=asked,
        classes=data.classes,
        read=lambda numbers: data.views([videos[i] for i in numbers], starts),
        unreadable=data.unreadable,
        origin=lambda number: videos[number].origin(),
    )
