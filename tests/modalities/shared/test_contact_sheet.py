"""Contact sheets: every picture once, its label under it, and files that are whole."""

import itertools
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from modalities.shared import contact_sheet, lettering


def test_every_picture_is_where_rows_and_columns_say_whatever_its_shape():
    rng = np.random.default_rng(0)
    tiles = list(rng.integers(0, 200, (6, 20, 32, 3), dtype=np.uint8))
    whole = contact_sheet.lay_out(tiles, [""] * 6, columns=3)
    assert whole.shape == (*contact_sheet.sheet_size(2, 3, 20, width=32)[::-1], 3)
    for i, tile in enumerate(tiles):
        y, x = 4 + i // 3 * (20 + 14 + 4), 4 + i % 3 * (32 + 4)
        assert np.array_equal(whole[y : y + 20, x : x + 32], tile)
    wide, narrow = tiles, [tile[:, :10] for tile in tiles]
    columns = [contact_sheet.lay_out(of, [""] * 6).shape[1] // (of[0].shape[1] + 4) for of in (wide, narrow)]
    assert columns[0] < columns[1]  # narrow pictures stand in longer rows
    with pytest.raises(ValueError, match="labels must be one per picture"):
        contact_sheet.lay_out(tiles, ["a"])


def test_a_class_has_its_own_row_where_few_cells_stay_empty():
    assert contact_sheet._rows(["chair", "table", "chair", "table"], None) == [[0, 2], [1, 3]]
    assert contact_sheet._rows(["chair", "table", "chair", "table"], 3) == [[0, 1, 2], [3]]
    many = contact_sheet._rows(list("abcdefgh") * 2, None)  # two classes side by side, not eight rows
    assert many == [[0, 8, 1, 9], [2, 10, 3, 11], [4, 12, 5, 13], [6, 14, 7, 15]]
    # Of clips: no strip of strips.
    strips = contact_sheet._rows(["cat"] * 10 + ["dog"] * 10, None, aspect=6.0)
    assert [len(row) for row in strips] == [2] * 10
    alone = contact_sheet._rows(list("abcdefghij"), None)
    assert list(itertools.chain(*alone)) == list(range(10))
    assert 1 < len(alone) < 10


@pytest.mark.parametrize("count", [1, 2, 9, 200])
def test_every_cloud_is_on_the_sheet_once(count):
    rng = np.random.default_rng(count)
    rows = contact_sheet._rows([f"{i}" for i in rng.integers(0, 4, count)], None)
    assert sorted(itertools.chain(*rows)) == list(range(count))


def test_classes_are_read_from_labels():
    assert [contact_sheet.class_of(name) for name in ("chair 12", "chair_0012", "chair", "12")] == [
        "chair"
    ] * 3 + ["12"]


def test_a_png_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    image = np.random.default_rng(0).integers(0, 256, (32, 24, 3), dtype=np.uint8)
    path = contact_sheet.save_png(tmp_path / "new" / "a.png", image)
    with Image.open(path) as read:
        assert np.array_equal(np.asarray(read), image)
    monkeypatch.setattr(Image.Image, "save", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        contact_sheet.save_png(path, image[::-1])
    assert [file.name for file in path.parent.iterdir()] == ["a.png"]
    with Image.open(path) as read:
        assert np.array_equal(np.asarray(read), image)


def test_labels_of_any_script_have_glyphs_or_escapes(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written has glyphs in the font that was chosen, and says as much, with fonts in the system or none."""
    texts = ["Стул 1", "椅子", "كرسي", "कुर्सी 2", "Стул 椅子 😀", "é", "e\u0301", "a\nb\u202e", "\udce9", ""]
    for fonts in (lettering._installed(), ()):
        monkeypatch.setattr(lettering, "_installed", lambda fonts=fonts: fonts)
        lettering.find.cache_clear()
        chosen = lettering.Lettering()
        for text in texts:
            face, written = chosen.choose(text)
            assert all(lettering._has(face, c) for c in written if not c.isspace())
            assert written.isprintable()
            assert len(written) >= len(text.replace("\u0301", ""))
        assert chosen.choose("chair 12") == (lettering.Face(), "chair 12")  # the same on all machines
    lettering.find.cache_clear()
    tile = np.zeros((48, 48, 3), np.uint8)
    assert contact_sheet.lay_out([tile], ["椅子\nb"], title="Стул").ndim == 3


def test_a_font_in_the_working_folder_is_nobodys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fonts").mkdir()
    (tmp_path / "fonts" / "a.ttf").touch()
    for place, found in ((".", False), ("", False), (str(tmp_path), True)):
        monkeypatch.setenv("XDG_DATA_HOME", place)
        lettering._installed.cache_clear()
        assert any(str(tmp_path) in os.path.abspath(face.file) for face in lettering._installed()) == found
    lettering._installed.cache_clear()
