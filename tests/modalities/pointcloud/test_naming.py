"""What a namer gets tells no class, its key is that of the sheet, and answers are counted by class."""

import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.quality import naming

KEY = {1: "chair", 2: "other", 3: "chair", 4: "bed"}


def test_answers_are_counted_by_class_and_without_the_class_of_all_else() -> None:
    rows = {line.split(" | ")[0]: line for line in naming.score(KEY, {1: "chair", 2: "other", 3: "sofa"})}
    assert rows["| chair"].startswith("| chair | 1 of 2 | 0.50 |")
    assert rows["| chair"].endswith("| sofa |")
    assert rows["| bed"].startswith("| bed | 0 of 1 | 0.00 |")  # nobody answered
    assert rows["| bed"].endswith("| nothing |")
    assert rows["| all"].startswith("| all | 2 of 4 | 0.50 |")
    assert rows["| all but other"].startswith("| all but other | 1 of 3 | 0.33 |")


def test_the_key_is_that_of_the_sheet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each shape is drawn under the number that the key gives its class, and nothing else goes with the picture."""
    shapes = [(name, np.full((30, 3), i)) for i, name in enumerate("abcdefgh")]
    sheets = {}
    monkeypatch.setattr(naming, "tile", lambda points, size: points[0, 0])
    monkeypatch.setattr(
        naming, "lay_out", lambda tiles, labels, columns: list(zip(labels, tiles, strict=True))
    )
    monkeypatch.setattr(naming, "save_png", lambda file, image: sheets.update({file.name: image}))
    naming.write_sheet(shapes, tmp_path / "out", tmp_path / "key.txt", seed=0)
    key = naming.read_names(tmp_path / "key.txt")
    assert [(number, "abcdefgh"[tile]) for number, tile in sheets["sheet.png"]] == [
        (str(number), name) for number, name in key.items()
    ]
    assert list(key.values()) != sorted(key.values())
    assert sheets["sheet-1.png"] == sheets["sheet.png"]
    assert (tmp_path / "out" / "classes.txt").read_text().split() == list("abcdefgh")


def test_real_shapes_are_as_many_of_each_class_as_are_drawn_held_out_ones_first() -> None:
    shapes = naming.real(18, 256, None)
    assert [name for name, _ in shapes].count("chair") == 2
    held_out = naming.Clouds(num_points=256).reference("test")
    chairs = held_out.data[held_out.labels == 2]
    assert np.array_equal([points for name, points in shapes if name == "chair"], chairs)


def test_a_line_that_is_no_answer_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "key.txt").write_text("1 chair\n\n2 bed\n")
    (tmp_path / "answers.txt").write_text("1 chair\nbed\n")
    words = ["--key", str(tmp_path / "key.txt"), "--answers", str(tmp_path / "answers.txt")]
    monkeypatch.setattr(sys, "argv", ["naming", *words])
    with pytest.raises(SystemExit) as ended:
        naming.main()
    assert ended.value.code == 2
    assert "answers.txt:2 must be a number and a class, as `17 chair`, got 'bed'" in capsys.readouterr().err
