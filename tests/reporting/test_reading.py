"""What is read of a run for its page: half written, damaged, huge or a link, it is told, bounded or left out."""

import json
import math
import os
import re
import shutil
import time
from pathlib import Path

import numpy as np
import pytest

from ditmoe.reporting import log, page, write_report
from ditmoe.reporting.samples import listed, shared
from tests.reporting.runs import content_of, line, make_run, reported


def test_a_log_that_is_half_written_or_not_finite_leaves_gaps(tmp_path: Path) -> None:
    lines = [
        line(1),
        "garbage\n",
        line(2, math.inf),
        '{"step": 3, "loss": NaN}\n',
        "[1]\n",
        line(2),
        line(4),
        line(5)[:9],
    ]
    found = reported(make_run(tmp_path / "run", log="".join(lines)))
    assert found["log"]["steps"] == [1, 2, 3, 4]
    assert found["log"]["curves"]["loss"] == [1.0, None, None, 0.25]
    assert found["log"]["curves"]["gradient_norm"] == [0.1, 0.1, None, 0.1]
    assert re.search("4 lines are half written", found["notes"][0])
    assert "2 numbers are not finite" in found["notes"][1]


@pytest.mark.parametrize("numbers", [10**6, 700])
def test_a_long_log_is_thinned_evenly_to_its_end(
    numbers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "log.jsonl"
    file.write_text("".join(map(line, range(1, 9002))))
    thinned = log.read_log(file, numbers)
    assert sum(map(len, thinned.curves.values())) <= min(numbers, 2001 * len(thinned.curves))
    assert thinned.steps[-1] == 9001
    assert set(np.diff(thinned.steps[:-1])) == {thinned.every}
    monkeypatch.setattr(log, "MOST_PARSED", file.stat().st_size // 10)
    assert log.read_log(file, numbers).every >= thinned.every


def test_a_log_that_grows_meanwhile_ends_where_it_ended(tmp_path: Path) -> None:
    """As a file of holes, it would be read for an hour."""
    file = tmp_path / "log.jsonl"
    file.write_text("".join(map(line, range(1, 4))))
    lines, _ = log._lines(file, log.Log())
    next(lines)
    os.truncate(file, 2**36)
    assert len(list(lines)) == 2


def test_links_are_not_followed(tmp_path: Path) -> None:
    """What they lead to is somebody else's, and the page is shown around."""
    run = make_run(tmp_path / "run")
    secret = tmp_path / "secret"
    make_run(secret, num=6)
    for name in ("log.jsonl", "metrics.json", "analysis/time.png", "analysis/analysis.json"):
        (run / name).unlink()
        (run / name).symlink_to(secret / name)
    shutil.rmtree(run / "checkpoints" / "step-0000020")
    (run / "checkpoints" / "step-0000020").symlink_to(secret / "checkpoints" / "step-0000020")
    (run / "samples" / "chair-0009.npy").symlink_to(secret / "samples" / "chair-0004.npy")
    for name in ("progress", "samples-all"):
        os.rename(run / name, tmp_path / name) if (run / name).exists() else None
        (run / name).symlink_to(secret / name.partition("-")[0])
    found = reported(run)
    assert not {"log", "metrics", "config", "step"} & {*found}
    assert (found["progress"], found["analysis"]) == ([], None)
    assert [(s["folder"], len(s["items"]), s["links"]) for s in found["sets"]] == [("samples", 4, 1)]


def test_what_cannot_be_read_is_counted(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    (run / "samples" / "chair-0000.npy").write_bytes(b"\x93NUMPY")
    (run / "samples" / "chair-0000.ply").unlink()
    (run / "metrics.json").write_text("{")
    (run / "analysis" / "time.png").write_bytes(b"\x89PNG")
    (run / "checkpoints" / "step-0000020" / "manifest.json").write_text("[]")
    found = reported(run)
    assert found["sets"][0]["unreadable"] == 1
    assert len(found["sets"][0]["items"]) == 3
    assert [note.partition(":")[0] for note in found["notes"]] == ["checkpoint", "metrics.json", "time.png"]


@pytest.mark.parametrize("parts", [("log.jsonl",), ("metrics.json",), ("samples",), ("checkpoints",)])
def test_a_run_need_not_be_whole(parts: tuple[str, ...], tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    for entry in [*run.iterdir()]:
        if entry.name not in parts:
            entry.rename(tmp_path / entry.name)
    found = reported(run)
    assert found["notes"] == []
    assert ("log" in found, "metrics" in found, bool(found["sets"]), "config" in found) == tuple(
        name in parts for name in ("log.jsonl", "metrics.json", "samples", "checkpoints")
    )


def test_a_class_that_is_not_trusted_shows_nothing(tmp_path: Path) -> None:
    """Its samples are listed by the names of their files."""
    target = {"modality": {"_target_": "tests.reporting.runs.Nobody"}}
    found = reported(make_run(tmp_path / "run", config=target))
    assert found["modality"] is None
    assert found["sets"][0]["items"] == []
    assert "chair-0000.ply" in found["sets"][0]["files"]
    assert any("listed, not shown" in note for note in found["notes"])


def test_sets_share_evenly() -> None:
    assert shared(10, [100, 2, 3]) == [5, 2, 3]
    assert shared(10, [1, 1]) == [1, 1]
    assert shared(7, [9, 9]) == [4, 3] or shared(7, [9, 9]) == [3, 4]


def test_files_of_a_sample_are_one(tmp_path: Path) -> None:
    for name in (
        "b-0010.ply",
        "b-0010.npy",
        "a-0009.npy",
        "x.npy",
        "samples.png",
        "prompts.json",
        ".hidden.npy",
    ):
        (tmp_path / name).touch()
    found, links = listed(tmp_path)
    assert [(f.name, f.number, f.kind, len(f.files)) for f in found] == [
        ("a-0009", 9, "a", 1), ("b-0010", 10, "b", 2), ("x", None, "x", 1),
    ]  # fmt: skip
    assert links == 0


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("metrics.json", json.dumps({f"{i}": 0 if i % 2 else {} for i in range(60_000)})),
        ("log.jsonl", "".join(json.dumps({"step": i, f"{i}": 1, f"{i}b": 1}) + "\n" for i in range(2000))),
    ],
)
def test_work_and_page_grow_no_faster_than_what_is_read(file: str, text: str, tmp_path: Path) -> None:
    """Each metric with each row, and each curve with each record, are more than any page may have."""
    run = make_run(tmp_path / "run", num=1)
    (run / file).write_text(text)
    began = time.process_time()
    assert write_report([run]).stat().st_size < 0.3 * page.LARGEST
    assert time.process_time() - began < 5


def test_no_link_is_followed_to_learn_what_samples_are(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", "image")
    shutil.rmtree(run / "checkpoints")
    (tmp_path / "elsewhere").mkdir()
    for number in range(9):
        (tmp_path / "elsewhere" / f"{number}.ply").touch()
    (run / "samples" / "more").symlink_to(tmp_path / "elsewhere")
    assert content_of(write_report([run]))[0]["modality"] == "image"


def test_unreadable_samples_end_the_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path / "run", num=1)
    for number in range(30):
        (run / "samples" / f"x-{number:04d}.npy").touch()
    monkeypatch.setattr("ditmoe.reporting.samples.MOST_UNREADABLE", 7)
    assert content_of(write_report([run]))[0]["sets"][0]["unreadable"] == 7
