"""Laws of the search for nearest clouds: bounds are below the distance, and the answer is that of all pairs."""

import errno
import fcntl
import importlib
from concurrent.futures import FIRST_COMPLETED, wait

import numpy as np
import pytest

from modalities.pointcloud import kernels
from modalities.pointcloud.metrics import distance
from modalities.pointcloud.metrics.bounds import Ladder, Level, Projections, dual_bound, ordered
from modalities.pointcloud.metrics.nearest import nearest, num_pairs
from modalities.pointcloud.metrics.scores import mmd_cov, one_nna
from modalities.shared import cache
from tests.modalities.pointcloud.test_kernels import KINDS, compiled, mean_assignment, pair

COSTS = {"l2": False, "sq": True}


def varied(count: int, seed: int = 0, points: int = 96) -> list[np.ndarray]:
    """Boxes of all proportions."""
    rng = np.random.default_rng(seed)
    return list(rng.uniform(-1, 1, (count, points, 3)) * rng.uniform(0.2, 1, (count, 1, 3)))


def duplicates(count: int, seed: int = 0) -> list[np.ndarray]:
    """Few different clouds, whose points come in several orders."""
    rng, few = np.random.default_rng(seed), varied(3)
    return [rng.permutation(few[i]) for i in rng.integers(3, size=count)]


def near_duplicates(count: int, seed: int = 0) -> list[np.ndarray]:
    rng, one = np.random.default_rng(seed), varied(1)[0]
    return [one + 0.01 * rng.normal(size=one.shape) for _ in range(count)]


SETS = {
    "varied": (varied(9, 1), varied(7, 2)),
    "near duplicates": (near_duplicates(8, 1), near_duplicates(9, 2)),
    "duplicates": (duplicates(8, 1), duplicates(9, 2)),
    "half copied": (varied(8, 1), varied(4, 1) + varied(4, 2)),
    "one each": (varied(1, 1), varied(1, 2)),
    "far off": ([cloud + 100 for cloud in varied(6, 1)], [cloud + 100 for cloud in near_duplicates(6, 2)]),
}


def matrices(reference: list, generated: list, cost: str = "l2") -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    def solved(a: np.ndarray, b: np.ndarray) -> float:
        if not kernels.available():
            return mean_assignment(a, b, COSTS[cost])
        return kernels.emd(ordered(a), ordered(b), COSTS[cost])[0]

    sets = ((reference, reference), (reference, generated), (generated, generated))
    rr, rs, ss = (np.array([[solved(x, y) for y in b] for x in a]) for a, b in sets)
    return rr, rs, ss


def check_bounds(x: np.ndarray, y: np.ndarray, squared: bool) -> None:
    x, y = ordered(x), ordered(y)
    exact = mean_assignment(x, y, squared) * (1 + 1e-13)
    for bases in (1, 4):
        projections = Projections([x, y], squared, bases)
        assert projections.bounds(0)[1] <= exact
        assert projections.bounds(0)[0] == 0
    assert dual_bound(x, y, squared) <= exact
    for group in (1, 4, 16, 64) if kernels.available() else ():
        assert kernels.emd_bound(x, y, squared, group) <= exact


@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_bounds_are_below_the_distance_on_every_kind_of_cloud(kind, squared):
    for n in (1, 17, 300):
        check_bounds(*pair(kind, n), squared)


@compiled
@pytest.mark.parametrize("squared", [False, True])
def test_bounds_are_near_the_distance(squared):
    x, y = pair("random", 1500)
    x, y = ordered(x * [1, 2, 3]), ordered(y * [3, 2, 1])
    exact = kernels.emd(x, y, squared)[0]
    bounds = [kernels.emd_bound(x, y, squared, group) / exact for group in (16, 4, 1)]
    assert 0.6 < bounds[0] < bounds[1] < bounds[2] < 1
    assert bounds[1] > 0.85
    assert bounds[2] > 0.99
    assert dual_bound(x, y, squared) / exact == pytest.approx(bounds[1], abs=0.1)


@pytest.mark.parametrize("squared", [False, True])
def test_projections_are_the_same_without_the_kernels(squared, monkeypatch):
    projections = Projections(varied(5), squared, bases=3)
    compiled_bounds = projections.bounds(2)
    monkeypatch.setattr(kernels, "library", lambda: None)
    np.testing.assert_allclose(projections.bounds(2), compiled_bounds, rtol=1e-10)
    along = np.array([[0, 0, 0.0], [3, 4, 0]])[:, None]
    way = Projections(list(along), squared).bounds(0)[1]
    assert way == pytest.approx(25 if squared else 5)  # of single points it is the distance


@compiled
@pytest.mark.parametrize("squared", [False, True])
def test_a_limit_ends_a_solution_only_above_it(squared):
    x, y = (ordered(cloud) for cloud in pair("random", 700))
    exact = kernels.emd(x, y, squared)
    assert kernels.emd(y, x, squared) == exact
    assert kernels.emd(x, y, squared, exact[0]) == kernels.emd(x, y, squared, 2 * exact[0]) == exact
    bound, gap = kernels.emd(x, y, squared, 0.5 * exact[0])
    assert 0.5 * exact[0] < bound <= exact[0]
    assert gap == np.inf


@pytest.mark.parametrize("neighbours", [1, 3])
@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize("name", SETS)
def test_the_search_finds_what_all_pairs_show(name, cost, neighbours):
    reference, generated = SETS[name]
    found = nearest(reference, generated, cost=cost, neighbours=neighbours, workers=1)
    full, some = matrices(reference, generated, cost), (found.rr, found.rs, found.ss)
    for all_pairs, solved, low in zip(full, some, (found.low_rr, found.low_rs, found.low_ss), strict=True):
        known = np.isfinite(solved)
        np.testing.assert_array_equal(solved[known], all_pairs[known])
        assert (low <= all_pairs).all()
        np.testing.assert_array_equal(low[known], all_pairs[known])
    assert one_nna(*some) == one_nna(*full)
    assert mmd_cov(found.rs) == mmd_cov(full[1])
    for all_pairs, solved in ((full[1], found.rs), (full[1].T, found.rs.T)):
        count = min(neighbours, all_pairs.shape[1])
        reach = np.sort(all_pairs, axis=1)[:, count - 1 : count]
        np.testing.assert_array_equal(
            np.where(all_pairs <= reach, all_pairs, 0), np.where(solved <= reach, solved, 0)
        )
    assert found.num_pairs == num_pairs(reference, generated)
    if name == "varied" and neighbours == 1:
        assert found.decided[Level.SOLVED] < 0.6 * found.num_pairs


@compiled
@pytest.mark.parametrize("points", [300, 1100])
def test_all_levels_of_bounds_decide_pairs_and_none_wrongly(points):
    rng = np.random.default_rng(0)
    clouds = [cloud @ np.linalg.qr(rng.normal(size=(3, 3)))[0] for cloud in varied(12, 3, points)]
    found = nearest(clouds[:6], clouds[6:])
    full = matrices(clouds[:6], clouds[6:])
    assert one_nna(found.rr, found.rs, found.ss) == one_nna(*full)
    assert mmd_cov(found.rs) == mmd_cov(full[1])
    assert (found.low_rs <= full[1]).all()
    assert set(Ladder(points, False).levels) == {Level.FINE, Level.SOLVED} | (
        {Level.COARSE} if points > 1024 else set()
    )
    assert found.decided[Level.FINE] > 0
    assert f"{found.num_pairs:,} pairs" in found.described()


def test_scipy_finds_the_same(monkeypatch):
    clouds = varied(12, 5, 270)
    expected = nearest(clouds[:6], clouds[6:])
    monkeypatch.setattr(kernels, "library", lambda: None)
    found = nearest(clouds[:6], clouds[6:])
    both = np.isfinite(expected.rs) & np.isfinite(found.rs)
    np.testing.assert_allclose(found.rs[both], expected.rs[both], rtol=1e-12)
    assert one_nna(found.rr, found.rs, found.ss) == one_nna(expected.rr, expected.rs, expected.ss)
    assert mmd_cov(found.rs) == pytest.approx(mmd_cov(expected.rs), rel=1e-12)
    assert found.decided[Level.COARSE] == found.decided[Level.PRICED] == 0
    assert found.decided[Level.SOLVED] < found.num_pairs


def test_neither_threads_nor_the_order_of_sets_matter():
    reference, generated = SETS["half copied"]
    one = nearest(reference, generated, workers=1)
    many = nearest(reference, generated, workers=4)
    swapped = nearest(generated, reference, workers=1)
    expected = one_nna(one.rr, one.rs, one.ss)
    assert one_nna(many.rr, many.rs, many.ss) == expected
    assert one_nna(swapped.rr, swapped.rs, swapped.ss) == pytest.approx(
        (expected[0], expected[2], expected[1])
    )
    assert mmd_cov(many.rs) == mmd_cov(one.rs) == mmd_cov(swapped.rs.T)


def test_progress_adds_up():
    reference, generated = SETS["varied"]
    told = []
    nearest(reference, generated, progress=told.append)
    assert sum(told) == num_pairs(reference, generated) == 120
    assert min(told) >= 0


def test_an_interrupted_search_goes_on_where_it_was(tmp_path, monkeypatch):
    reference, generated = SETS["near duplicates"]
    expected = nearest(reference, generated, workers=1)

    def interrupt(done: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        nearest(reference, generated, workers=1, progress=interrupt, folder=tmp_path)
    assert len(list(tmp_path.iterdir())) == 3
    found = nearest(reference, generated, workers=1, folder=tmp_path)
    assert 0 < found.reused < found.decided[Level.SOLVED]
    assert one_nna(found.rr, found.rs, found.ss) == one_nna(expected.rr, expected.rs, expected.ss)
    assert mmd_cov(found.rs) == mmd_cov(expected.rs)

    monkeypatch.setattr(Ladder, "ask", lambda *args: pytest.fail("all was known"))
    again = nearest(reference, generated, workers=1, folder=tmp_path)
    assert again.reused == again.decided[Level.SOLVED] == found.decided[Level.SOLVED]
    np.testing.assert_array_equal(again.rs, found.rs)


@compiled
def test_what_is_kept_meanwhile_is_true(tmp_path, monkeypatch):
    """Threads go on while it is written: nothing may be called solved that is not."""
    search = importlib.import_module("modalities.pointcloud.metrics.nearest")
    reference, generated = near_duplicates(60, 1), near_duplicates(60, 2)
    clouds = [ordered(cloud) for cloud in (*reference, *generated)]
    kept, store = [], cache.store
    monkeypatch.setattr(search, "wait", lambda left, **_: wait(left, timeout=0, return_when=FIRST_COMPLETED))
    monkeypatch.setattr(search, "FLUSH", 0.0)

    def slow(file, **arrays):
        kept.append((file, arrays))
        store(file, **arrays)

    monkeypatch.setattr(cache, "store", slow)
    nearest(reference, generated, workers=2, folder=tmp_path)
    assert len(kept) > 12  # of three files
    offsets = dict(zip(dict.fromkeys(file for file, _ in kept), [(0, 0), (0, 60), (60, 60)], strict=True))
    seen = set()
    for file, arrays in kept:
        for i, j, level, value in zip(
            arrays["i"], arrays["j"], arrays["level"], arrays["value"], strict=True
        ):
            if level == Level.SOLVED and (file, i, j, value) not in seen:
                seen.add((file, i, j, value))
                a, b = offsets[file]
                assert value == kernels.emd(clouds[i + a], clouds[j + b], False)[0]


def test_what_is_kept_is_of_one_moment(tmp_path):
    search = importlib.import_module("modalities.pointcloud.metrics.nearest")
    reference, generated = SETS["varied"]
    known = search._Search(reference, generated, False, 1)
    known.level[0, 1] = known.level[1, 0] = Level.FINE

    class Writing:
        def __enter__(self):
            pass

        def __exit__(self, *error):
            known.level[:] = Level.SOLVED  # what a thread does as soon as it may

    known.writing = Writing()
    kept = search._Kept(tmp_path, reference, generated, "l2")
    kept.keep(known)
    assert [cache.load(file, kept.FORMS)["level"].tolist() for file, _ in kept.files] == [
        [Level.FINE],
        [],
        [],
    ]
    assert known.level.min() == Level.SOLVED


def test_a_folder_that_cannot_be_written_costs_no_result(tmp_path, capsys):
    reference, generated = SETS["varied"]
    (tmp_path / "file").write_text("in the way")
    found = nearest(reference, generated, workers=1, folder=tmp_path / "file")
    np.testing.assert_array_equal(found.rs, nearest(reference, generated, workers=1).rs)
    assert capsys.readouterr().err.count("results cannot be kept in") == 1


def test_a_full_disk_is_told_once_and_costs_no_result(tmp_path, monkeypatch, capsys):
    def full(file):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(cache, "replacing", full)
    reference, generated = SETS["varied"]
    found = nearest(reference, generated, workers=1, folder=tmp_path)
    np.testing.assert_array_equal(found.rs, nearest(reference, generated, workers=1).rs)
    assert capsys.readouterr().err == f"results cannot be kept in {tmp_path}: No space left on device\n"


def test_a_set_against_itself_goes_on_where_it_was(tmp_path, monkeypatch):
    clouds, ask, asked = SETS["near duplicates"][0], Ladder.ask, []
    expected = nearest(clouds, clouds, neighbours=2, workers=1)

    def stopping(*args):
        asked.append(args)
        if len(asked) == 20:
            raise KeyboardInterrupt
        return ask(*args)

    monkeypatch.setattr(Ladder, "ask", stopping)
    with pytest.raises(KeyboardInterrupt):
        nearest(clouds, clouds, neighbours=2, workers=1, folder=tmp_path)
    assert len(list(tmp_path.iterdir())) == 2  # within the set, and across
    first = nearest(clouds, clouds, neighbours=2, workers=1, folder=tmp_path)
    monkeypatch.setattr(Ladder, "ask", lambda *args: pytest.fail("all was known"))
    again = nearest(clouds, clouds, neighbours=2, workers=1, folder=tmp_path)
    full = matrices(clouds, clouds, "l2")
    for found in (first, again):
        assert one_nna(found.rr, found.rs, found.ss) == one_nna(expected.rr, expected.rs, expected.ss)
        for every, some in zip(full, (found.rr, found.rs, found.ss), strict=True):
            known = np.isfinite(some)
            np.testing.assert_array_equal(some[known], every[known])


def test_what_killed_processes_left_is_removed(tmp_path):
    dead, alive, other = (tmp_path / name for name in (
        ".a.npz.01234567.ditmoe-draft", ".b.npz.01234567.ditmoe-draft", ".c.npz.1.tmp"))  # fmt: skip
    for file in (dead, alive, other):
        file.touch()
    with open(alive) as writer:
        fcntl.flock(writer, fcntl.LOCK_EX)
        assert cache.writable(tmp_path) == tmp_path
    assert set(tmp_path.iterdir()) == {alive, other}
    assert cache.writable(None) is None


def test_the_reference_is_searched_once(tmp_path):
    reference = SETS["varied"][0]
    nearest(reference, varied(5, 8), folder=tmp_path)
    found = nearest(reference, varied(5, 9), folder=tmp_path)
    assert found.reused > 0
    assert len(list(tmp_path.iterdir())) == 5  # the reference with itself, and two for each generated set
    assert nearest(reference, varied(5, 9), folder=tmp_path, cost="sq").reused == 0


def test_damaged_results_are_made_anew(tmp_path, capsys):
    reference, generated = SETS["varied"]
    expected = nearest(reference, generated, folder=tmp_path)
    for number, file in enumerate(sorted(tmp_path.iterdir())):
        file.write_bytes([b"", b"nonsense", file.read_bytes()[:-100]][number])
    found = nearest(reference, generated, folder=tmp_path)
    assert found.reused == 0
    np.testing.assert_array_equal(found.rs.min(axis=1), expected.rs.min(axis=1))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert all("damaged" in line for line in lines)


def test_a_file_is_named_after_its_content(tmp_path):
    clouds = varied(3)
    same = cache.content_hash([cloud.copy() for cloud in clouds])
    assert cache.content_hash(clouds) == cache.content_hash(np.array(clouds)) == same
    assert cache.content_hash(clouds[::-1]) != same
    assert cache.content_hash([clouds[0].reshape(-1, 1, 3)]) != cache.content_hash(clouds[:1])
    files = {
        cache.file_of(tmp_path, *words) for words in (("cd", "a", "b"), ("cd", "b", "a"), ("emd", "a", "b"))
    }
    assert len(files) == 3
    form = {"matrix": ("f8", (2, "n"))}
    cache.store(tmp_path / "x.npz", matrix=np.eye(2))
    np.testing.assert_array_equal(cache.load(tmp_path / "x.npz", form)["matrix"], np.eye(2))
    assert cache.load(tmp_path / "y.npz", form) is None


def test_errors():
    clouds = varied(2)
    with pytest.raises(ValueError, match="at least one cloud, got 2 and 0"):
        nearest(clouds, [])
    with pytest.raises(ValueError, match="equal numbers of points, got 90 and 96"):
        nearest(clouds, [clouds[0][:90]])
    with pytest.raises(ValueError, match="finite"):
        nearest(clouds, [clouds[0] * np.nan])
    with pytest.raises(ValueError, match=r"must be \(N, 3\)"):
        nearest(clouds, [clouds[0][:, :2]])
    with pytest.raises(ValueError, match="cost must be l2 or sq, got 'cd'"):
        nearest(clouds, clouds, cost="cd")
    with pytest.raises(ValueError, match="neighbours must be at least 1, got 0"):
        nearest(clouds, clouds, neighbours=0)
    with pytest.raises(ValueError, match="workers must be at least 1, got 0"):
        nearest(clouds, clouds, workers=0)


def test_distances_are_those_of_pairwise():
    reference, generated = SETS["varied"]
    found = nearest(reference, generated)
    full = distance.pairwise(reference, generated, "emd")
    known = np.isfinite(found.rs)
    np.testing.assert_array_equal(found.rs[known], full[known])
