"""What this process may have: of the machine, and of the control groups that a container or a job lives in."""

from pathlib import Path

import pytest

from ditmoe.outside import check_memory, memory

GIB = 2**30


def system(root: Path, groups: str, **files: str) -> Path:
    """A root whose /proc and /sys say these things."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(groups)
    for name, text in files.items():
        file = root / "sys/fs/cgroup" / name.replace("__", "/").replace("--", ".")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return root


def test_a_machine_without_groups_has_its_memory(tmp_path: Path) -> None:
    whole = memory(tmp_path)
    assert whole > 2**26
    for number, groups in enumerate(
        ("", "0::/", "0::/a/b\n", "nonsense\n:::\n4:memory\n", "0::/../../../etc")
    ):
        assert memory(system(tmp_path / str(number), groups)) == whole
    unlimited = {"a__memory--max": "max\n", "a__memory--current": "5\n"}
    assert memory(system(tmp_path / "max", "0::/a\n", **unlimited)) == whole
    old = {"memory__memory--limit_in_bytes": "9223372036854771712\n", "memory__memory--usage_in_bytes": "5"}
    assert memory(system(tmp_path / "old", "4:memory:/a\n", **old)) == whole


@pytest.mark.parametrize("own", ["max", str(GIB // 2)])
def test_each_group_above_counts_less_what_it_has(tmp_path: Path, own: str) -> None:
    files = {"a__b__memory--max": own, "a__b__memory--current": str(2**20), "a__memory--max": str(2**26),
             "a__memory--current": str(2**25), "a__memory--stat": f"anon 1\ninactive_file {2**24}\nx 3\n"}  # fmt: skip
    assert memory(system(tmp_path, "0::/a/b\n", **files)) == 2**26 - 2**25 + 2**24


def test_version_1_and_a_path_of_the_host(tmp_path: Path) -> None:
    """In a container the path is the host's, and the uppermost group that is seen is the container's."""
    files = {"memory__memory--limit_in_bytes": str(2**26), "memory__memory--usage_in_bytes": str(2**20)}
    groups = "9:cpu:/docker/1\n4:cpuset,memory:/docker/1\n0::/docker/1\n"
    assert memory(system(tmp_path, groups, **files)) == 2**26 - 2**20


def test_a_group_that_is_full_has_nothing(tmp_path: Path) -> None:
    files = {"memory--max": str(2**20), "memory--current": str(2**30)}
    assert memory(system(tmp_path, "0::/", **files)) == 0


def test_what_is_refused_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    check_memory(1, "things")
    for needed in (10**30, 1e300, 10**400, float("inf")):
        with pytest.raises(
            ValueError, match=r"^things need more than [^\n]* GB, this machine has [^\n]* GB: less$"
        ):
            check_memory(needed, "things", "less")
