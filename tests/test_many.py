"""Many processes do what one does: the same samples."""

from pathlib import Path

import numpy as np

from ditmoe import build
from ditmoe.sample import draw_from, make_labels
from tests.many import together
from tests.test_trainer import trainer


def drawn(folder: Path) -> np.ndarray:
    restored = build.restore(folder)
    samples = draw_from(restored, make_labels(restored.modality.classes, 13, None), batch_size=5)
    return None if samples is None else samples.data


def test_samples_of_many_are_those_of_one_to_the_bit(tmp_path: Path) -> None:
    run, _ = trainer(tmp_path, "trainer.steps=1")
    run.run()
    one = drawn(tmp_path)
    assert len(one) == 13
    for num in (2, 4):  # of three batches
        assert np.array_equal(together(drawn, num, tmp_path), one)
