"""A dependence that is there is found, one that is not there is within chance; the units of chance are samples."""

from collections.abc import Callable

import numpy as np
import pytest

from ditmoe.analysis.factors import Factor, factors_of
from ditmoe.analysis.paths import transitions
from ditmoe.analysis.record import Record
from ditmoe.analysis.specialisation import Specialisation, experts_per_token, specialise
from ditmoe.analysis.statistics import entropy, given, mutual_information
from ditmoe.conditioning import Condition, text_rows

S, B, GRID, E = 24, 4, (4, 4), 4
BINS = [str(b) for b in range(B)]
Choose = Callable[..., np.ndarray]


def record(choose: Choose, seed: int = 0) -> Record:
    """All cells are tokens, one expert each: that of `choose`, of sample, bin, cell and random numbers."""
    rng = np.random.default_rng(seed)
    sample, time, *cell = (x.ravel() for x in np.indices((S, B, *GRID)))
    expert = choose(sample, time, np.stack(cell, 1), rng) % E
    grid = np.broadcast_to(GRID, (len(sample), 2))
    return Record(sample, time, np.stack(cell, 1), grid, np.eye(E)[expert][:, None], np.ones((S, B)))


def of(choose: Choose, seed: int = 0, permutations: int = 60) -> Specialisation:
    classes = Factor("class", np.arange(S) % 3, ["a", "b", "c"])
    return specialise(record(choose, seed), [classes], BINS, permutations, seed)


def noisy(value: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Half of the tokens go by a value, the others anywhere."""
    return np.where(rng.random(len(value)) < 0.5, value, rng.integers(0, E, len(value)))


PLANTED: dict[str, Choose] = {
    "time": lambda s, t, c, rng: noisy(t, rng),
    "place": lambda s, t, c, rng: noisy(c[:, 0] + 2 * c[:, 1], rng),
    "axis 1": lambda s, t, c, rng: noisy(c[:, 1], rng),
    "class": lambda s, t, c, rng: noisy(s % 3, rng),
}


@pytest.mark.parametrize("name", PLANTED)
def test_what_is_planted_is_found_and_nothing_else(name: str) -> None:
    found = of(PLANTED[name])
    each = found.whole[name]
    low, high = each.interval
    number = 3 if name == "class" else 4
    table = np.full((number, E), 0.125) + 0.5 * np.eye(number, E)
    true = mutual_information(table / table.sum())
    assert each.p[0] < 0.02
    half = (high[0] - low[0]) / 2
    assert -0.15 * true - half < each.corrected[0] - true < half, (
        "what chance gives takes a little too much off"
    )
    assert low[0] > 0.05
    others = {"time", "place", "class"} - {"place" if name == "axis 1" else name}
    assert all(found.whole[other].p[0] > 0.02 for other in others)
    assert all(abs(found.whole[other].corrected[0]) < 0.03 for other in others)


def clumps(s: np.ndarray, t: np.ndarray, c: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Each sample has a patch of its own where, at all times, all tokens go to an expert of its own."""
    corner, own = rng.integers(0, 4, (S, 2)), rng.integers(0, E, S)
    inside = ((c - corner[s]) % 4 < 3).all(1)
    return np.where(inside, own[s], rng.integers(0, E, len(s)))


def test_tokens_of_a_sample_are_no_evidence_of_their_own() -> None:
    """Clumps that depend on nothing are within chance; chance over single tokens would have called them a finding."""
    found = [of(clumps, seed) for seed in range(8)]
    for name in ("place", "class"):
        p = np.array([each.whole[name].p[0] for each in found])
        assert (p > 0.02).all()
        assert np.mean(p) > 0.25
    noise = of(lambda s, t, c, rng: rng.integers(0, E, len(s)))
    for name in ("place", "class"):
        tokens_alone = np.quantile(noise.whole[name].null, 0.99)
        assert np.mean([each.whole[name].value[0] for each in found]) > tokens_alone


def test_experts_that_change_their_places_are_seen_given_the_place() -> None:
    found = of(lambda s, t, c, rng: noisy(c[:, 0] + t, rng)).whole
    assert found["time"].p[0] > 0.02
    assert found["place"].p[0] > 0.02
    assert found["time given place"].p[0] < 0.02
    assert found["time given place"].interval[0][0] > 0.1


def test_information_of_tables() -> None:
    assert np.isclose(mutual_information(np.eye(4)), 2)
    assert np.isclose(mutual_information(np.ones((3, 5))), 0)
    assert mutual_information(np.zeros((2, 2))) == 0
    assert np.isclose(given(np.stack([np.eye(2), np.ones((2, 2))])), 1 / 3)
    assert np.isclose(entropy(np.array([0.5, 0.25, 0.25])), 1.5)


def test_the_next_layer_beyond_time_and_place() -> None:
    """What both layers have of the place is no path; what one layer has of the other is."""

    def two(follows: bool) -> Record:
        one = record(lambda s, t, c, rng: noisy(c[:, 0], rng), 1)
        other = record(lambda s, t, c, rng: noisy(c[:, 0], rng), 2)
        chosen = np.concatenate([one.chosen, (one if follows else other).chosen], 1)
        return Record(one.sample, one.time, one.cell, one.grid, chosen, one.loss)

    table, following = transitions(two(True), 60, 0)
    assert np.count_nonzero(table) == E
    assert following is not None
    assert following.p[0] < 0.02
    table, following = transitions(two(False), 60, 0)
    assert following is not None
    assert following.value[0] > 0.05
    assert following.p[0] > 0.02
    assert abs(following.corrected[0]) < 0.02


def test_one_layer_has_no_next() -> None:
    table, following = transitions(record(lambda s, t, c, rng: t), 20, 0)
    assert table.shape == (0, E, E)
    assert following is None


def test_experts_per_token() -> None:
    one = record(lambda s, t, c, rng: t)
    more = np.concatenate([one.chosen, (np.arange(E) <= one.time[:, None])[:, None]], 1)
    by_pass, by_place = experts_per_token(Record(one.sample, one.time, one.cell, one.grid, more, one.loss))
    assert (by_pass[:, :, 0] == 1).all()
    assert (by_pass[:, :, 1] == [1, 2, 3, 4]).all()
    assert (by_place[:, 1] == np.array([1, 2, 3, 4])[:, None]).all()


def test_what_is_asked_for_is_more_than_classes() -> None:
    import torch

    values = {
        "label": torch.tensor([0, 1, 1, 2, 0, 1, 2, 0]),
        "style": torch.tensor([3, 3, 5, 5, 3, 3, 5, 5]),
        "size": torch.linspace(0, 1, 8),
        "words": torch.tensor([[7, 1], [7, 2], [7, 0], [7, 1], [7, 1], [7, 9], [7, 0], [7, 0]]),
        "text": text_rows([*["A red chair."] * 3, *["a chair, Red"] * 2, *["a table"] * 2, "a red table"]),
        "same": torch.ones(8, dtype=torch.long),
        "image": torch.zeros(8, 3, 3),
    }
    null = torch.zeros(8, dtype=torch.bool)
    null[7] = True
    found = {factor.name: factor for factor in factors_of(Condition(values, null), ["cat", "dog\n", "cow"])}
    assert list(found) == ["class", "style", "size", "words 1", "text chair", "text red", "text table"]
    assert list(found["class"].names) == ["cat", "dog\\x0a", "cow", "any"]
    assert found["style"].of.tolist() == [0, 0, 1, 1, 0, 0, 1, 1]
    assert found["words 1"].of.tolist() == [1, 0, 0, 1, 1, 0, 0, 0]
    assert found["text red"].of.tolist() == [1, 1, 1, 1, 1, 0, 0, 0], "the last one is not asked for"
