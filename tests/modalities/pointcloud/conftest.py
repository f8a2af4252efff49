"""What tests of point clouds share."""

from functools import partial

import pytest

from modalities.pointcloud.metrics import confidence


@pytest.fixture
def few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests that are not about intervals, which take most of the time."""
    monkeypatch.setattr(confidence, "half_sampling", partial(confidence.half_sampling, draws=10))
