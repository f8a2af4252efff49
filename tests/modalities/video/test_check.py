"""`prepare check=true` tells which videos decode, and why others do not, and goes on where it was interrupted."""

import json
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from modalities.video.data import check as checking
from modalities.video.data.check import check
from modalities.video.io.writer import write_mp4
from tests.modalities.video.videos import make, picture, write_frames


def manifest(out: Path) -> dict[str, dict]:
    lines = [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]
    return {line["path"]: line for line in lines}


def test_check_tells_what_decodes_and_why_not(damaged: Path, tmp_path: Path) -> None:
    write_frames(damaged / "Biking" / "frames", np.stack([picture(i) for i in range(6)]))
    Image.fromarray(picture(0)[:9]).save(damaged / "Biking" / "frames" / "00009.png")
    write_mp4(damaged / "Diving" / "x.mp4", np.stack([picture(i) for i in range(7)]), 25)
    report = check(damaged, tmp_path / "out", workers=0)
    lines = manifest(tmp_path / "out")
    assert report["videos"] == len(lines) == 14
    assert report["reasons"] == {"not a video": 1, "truncated": 1, "damaged": 1}
    whole = lines["Diving/x.mp4"]
    assert {key: whole[key] for key in ("frames", "rate", "height", "width", "codec", "reason")} == {
        "frames": 7, "rate": 25.0, "height": 48, "width": 64, "codec": "h264", "reason": ""
    }  # fmt: skip
    assert len(whole["sha256"]) == 64
    assert 0 < lines["Archery/v_Archery_g03_c01.avi"]["frames"] < 20
    assert lines["Archery/v_Archery_g02_c01.avi"]["frames"] == 0
    assert lines["Biking/frames"]["frames"] == 6
    assert report["frames"] == sum(line["frames"] for line in lines.values())
    assert check(damaged, tmp_path / "apart", workers=1)["reasons"] == report["reasons"]
    assert manifest(tmp_path / "apart") == lines


def test_check_goes_on_where_it_was_interrupted(
    ucf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, out, seen = tmp_path / "set", tmp_path / "out", []
    shutil.copytree(ucf, root)
    examine = checking.examine

    def interrupted(path: Path) -> dict:
        if len(seen) == 5:
            raise KeyboardInterrupt
        seen.append(path)
        return examine(path)

    monkeypatch.setattr(checking, "examine", interrupted)
    with pytest.raises(KeyboardInterrupt):
        check(root, out, workers=0)
    assert len(manifest(out)) == 5
    monkeypatch.setattr(checking, "examine", lambda path: seen.append(path) or examine(path))
    assert check(root, out, workers=0)["kept"] == 5
    assert len(seen) == len(set(seen)) == 12
    changed = seen[0]
    make(changed, "mpeg4", num=9)
    gone = seen[1]
    gone.unlink()
    report = check(root, out, workers=0)
    assert (report["videos"], report["kept"], seen[12:]) == (11, 10, [changed])
    assert manifest(out)[changed.relative_to(root).as_posix()]["frames"] == 9
    assert report["removed"] == 1
    changed.rename(changed.with_stem("moved"))
    seen[2].touch()
    report = check(root, out, workers=0)
    assert (report["videos"], report["kept"], report["removed"], len(seen)) == (11, 11, 0, 13)
    check(root, tmp_path / "fresh", workers=0)
    assert manifest(out) == manifest(tmp_path / "fresh")


@pytest.mark.parametrize(
    "change",
    [{"reason": []}, {"reason": "\x1b[2J"}, {"frames": "9"}, {"frames": None}, {"frames": True}, {"path": 5},
     {"log": {}}, {"x": 1}, {"codec": None}],
)  # fmt: skip
def test_check_believes_no_manifest_of_another_form(change: dict, tmp_path: Path) -> None:
    """Its lines are taken for files of the same content, whoever wrote them."""
    root, out = tmp_path / "set", tmp_path / "out"
    root.mkdir()
    write_mp4(root / "x.mp4", np.stack([picture(i) for i in range(3)]), 25)
    check(root, out, workers=0)
    line = json.loads((out / "manifest.jsonl").read_text())
    before = json.dumps(line | change)
    (out / "manifest.jsonl").write_text(before)
    with pytest.raises(ValueError, match=r"must be the manifest of an earlier run, got something else$"):
        check(root, out, workers=0)
    assert (out / "manifest.jsonl").read_text() == before
    (out / "manifest.jsonl").write_text(json.dumps(line))
    assert check(root, out, workers=0)["kept"] == 1


def test_check_refuses_what_is_not_its_own(ucf: Path, tmp_path: Path) -> None:
    (tmp_path / "manifest.jsonl").write_text("my notes\n")
    with pytest.raises(ValueError, match="manifest of an earlier run"):
        check(ucf, tmp_path)
    with pytest.raises(ValueError, match="not there"):
        check(tmp_path / "none", tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="can be written"):
        check(ucf, tmp_path / "file")


def trouble(path: Path) -> dict[str, object]:
    if "hang" in path.name:
        time.sleep(60)
    if "crash" in path.name:
        os._exit(3)
    if "bug" in path.name:
        raise KeyError(path.name)
    return {"frames": 3, "reason": ""}


def test_a_video_that_hangs_or_kills_its_decoder_is_counted_and_the_others_are_not_touched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["a", "bug", "crash", "d", "hang", "line\nbreak", "z"]
    for name in names:
        (tmp_path / "set" / f"{name}.mp4").parent.mkdir(exist_ok=True)
        (tmp_path / "set" / f"{name}.mp4").write_bytes(b"x")
    monkeypatch.setattr(checking, "examine", trouble)
    monkeypatch.setattr(checking, "SECONDS", 1)
    report = check(tmp_path / "set", tmp_path / "out", workers=1)
    assert report["reasons"] == {"crash": 2, "timeout": 1}
    lines = manifest(tmp_path / "out")
    assert {name for name, line in lines.items() if not line["reason"]} == {
        "a.mp4", "d.mp4", r"line\x0abreak.mp4", "z.mp4"
    }  # fmt: skip
    assert len(lines["hang.mp4"]["sha256"]) == 64
    assert lines["hang.mp4"]["frames"] == 0
