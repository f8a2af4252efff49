"""The same global batch for any number of ranks, whatever the modality, also where they know only its facts."""

import pytest
import torch

from ditmoe.config import build
from ditmoe.config.compose import composed

MODALITIES = {
    "pointcloud": ["modality=pointcloud", "modality.num_points=32"],
    "image": ["modality=image", "modality.size=[16,16]", "modality.codec.channels=3"],
    "video": [
        "modality=video", "modality.frames=5", "modality.size=[16,16]", "modality.codec.channels=6",
        "modality.codec.steps=1", "modality.codec.width=8", "modality.data.workers=0", "modality.images=0.5",
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", list(MODALITIES))
def test_the_batches_of_all_ranks_are_the_batch_of_one(name: str) -> None:
    config = composed("train", MODALITIES[name])
    first = build.make_modality(config)
    other = build.make_modality(config, first.data_facts())
    for step in (0, 1, 9):
        x, y = first.batch(6, 3, step)
        for world in (2, 3):
            adapters = [first] + [other] * (world - 1)
            parts = [a.batch(6 // world, 3, step, rank, world) for rank, a in enumerate(adapters)]
            assert torch.equal(torch.cat([labels for _, labels in parts]), y)
            # a codec's products are rounded by the size of the batch
            assert torch.allclose(torch.cat([samples for samples, _ in parts]), x, atol=1e-5)
