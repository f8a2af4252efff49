"""The page of a run: whoever made the run, it executes nothing, loads nothing, is bounded, and shows what is there."""

import base64
import hashlib
import html.parser
import io
import json
import math
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ditmoe import report, train
from ditmoe.given import GIVEN
from ditmoe.inference import sample_checkpoint
from ditmoe.modality import Samples, Shown
from ditmoe.reporting import log, page, pictures, write_report
from ditmoe.reporting.budget import Budget, encoded
from ditmoe.reporting.samples import listed, shared
from tests.reporting.runs import SHAPES, adapter, data_of, line, make_run
from tests.training.test_trainer import trainer

ROOT = Path(__file__).resolve().parents[2]
NASTY = (
    "</script><script>document.title='owned'</script><!--", "<img src=x onerror=alert(1)>", "a\u2028b\u2029",
    "${x}\"'`&amp;", "\u202egnp.exe", "\x1b[2J",
)  # fmt: skip


class Parsed(html.parser.HTMLParser):
    """What a browser makes of the text: elements with their attributes, and what stands in scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.inner: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.elements[-1:] and self.elements[-1][0] in ("script", "style"):
            self.inner.append(data)

    def handle_endtag(self, tag: str) -> None:
        if tag in ("script", "style"):
            self.elements.append(("/", {}))


def content_of(file: Path) -> list[dict[str, Any]]:
    """The runs that a page's data speak of."""
    found = re.search(
        r'<script type="application/json" id="data">(.*?)</script>', file.read_text(), re.DOTALL
    )
    assert found is not None
    return json.loads(found[1])["runs"]


def reported(run: Path, **options: Any) -> dict[str, Any]:
    (only,) = content_of(write_report([run], **options))
    return only


def test_it_shows_what_is_there(tmp_path: Path) -> None:
    found = reported(make_run(tmp_path / "pointcloud" / "one", config={"optimizer": {"lr": 0.1}}))
    assert found["name"] == "pointcloud/one"
    assert (found["modality"], found["step"]) == ("pointcloud", 20)
    assert found["command"] == "python -m ditmoe.train 'name=a b'"
    assert ["optimizer.lr", "0.1"] in found["config"]
    (row,) = found["metrics"]["rows"]
    assert row == {"name": "fd", "value": 0.25, "interval": [0.2, 0.3], "rows": {"oracle": 0.1, "floor": 0.2}}
    assert found["metrics"]["notes"] == ["few samples"]
    assert found["log"]["steps"] == [*range(1, 21)]
    assert found["log"]["curves"]["load/layer00/expert01"] == [0.6] * 20
    assert [item["class"] for item in found["sets"][0]["items"]] == ["chair", "table", "chair", "table"]
    assert [sheet["step"] for sheet in found["progress"]] == [10]
    assert [drawn["name"] for drawn in found["analysis"]["pictures"]] == ["time"]
    assert found["analysis"]["dependence"] == [{"of": "time", "layers": [[0.1, 0.005], [0.2, 0.4]]}]
    assert found["notes"] == []


def test_what_a_run_says_is_data_alone(tmp_path: Path) -> None:
    """Names of classes, prompts, options, metrics: none of them becomes an element, or ends one."""
    config = {"x": {text: text for text in NASTY}}
    run = make_run(
        tmp_path / "<b>run", classes=NASTY, num=6, config=config, log=line(1).replace("loss", NASTY[0])
    )
    (run / "metrics.json").write_text(json.dumps(dict.fromkeys(NASTY, 1.0) | {"notes": [*NASTY]}))
    (run / "samples" / "prompts.json").write_text(json.dumps({"prompts": [*NASTY]}))
    file = write_report([run])
    plain = write_report([make_run(tmp_path / "plain", num=6)])
    parsed, others = Parsed(file.read_text()), Parsed(plain.read_text())
    assert [tag for tag, _ in parsed.elements] == [tag for tag, _ in others.elements]
    assert file.read_text().count("<!--") == 1  # the licence
    (only,) = content_of(file)
    assert only["sets"][0]["items"][0]["class"] == NASTY[0]
    assert only["sets"][0]["items"][1]["prompt"] == NASTY[1]
    assert only["metrics"]["notes"][:2] == [*NASTY[:2]]
    assert "\u202e" not in file.read_text()
    assert not set(encoded([*NASTY])) & {"<", ">", "&", "\u2028", "\u2029"}


def test_only_own_scripts_are_obeyed_and_nothing_is_loaded(tmp_path: Path) -> None:
    text = write_report([make_run(tmp_path / "run")]).read_text()
    parsed = Parsed(text)
    metas = [attributes for tag, attributes in parsed.elements if tag == "meta"]
    policy = next(m["content"] for m in metas if m.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules.pop("default-src") == "'none'"
    assert rules.pop("img-src") == "data:"
    assert set(rules) == {"style-src", "script-src", "base-uri", "form-action"}
    told = set(re.findall(r"'sha256-([^']+)'", policy))
    digests = [base64.b64encode(hashlib.sha256(inner.encode()).digest()).decode() for inner in parsed.inner]
    assert {digest for digest, inner in zip(digests, parsed.inner, strict=True) if inner[0] != "{"} == told
    assert "unsafe" not in policy
    for tag, attributes in parsed.elements:
        assert not [name for name in attributes if name.startswith("on") or name == "src"], tag
        assert (attributes.get("href") or "data:").startswith(("data:", "#"))
    own = "".join(page.asset(name) for name in page.SCRIPTS if not name.startswith("uPlot"))
    assert set(re.findall(r"https?://[^\s\"'`)]+", own)) == {"http://www.w3.org/2000/svg"}
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function|import\(", own
    )
    assert "@import" not in text
    assert "url(" not in text
    assert "The MIT License" in text


def test_the_same_runs_give_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However their paths are written."""
    run = make_run(tmp_path / "a" / "run")
    first = write_report([run], out=tmp_path / "1.html").read_bytes()
    monkeypatch.chdir(tmp_path / "a")
    assert write_report(["./run/"], out=tmp_path / "2.html").read_bytes() == first
    assert str(tmp_path).encode() not in first


def test_runs_side_by_side_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [make_run(tmp_path / top / "image" / "default", "image") for top in ("x", "y")]
    monkeypatch.chdir(tmp_path)
    file = write_report([*runs, runs[0]])
    assert file == Path("report.html")
    assert [run["name"] for run in content_of(file)] == ["x/image/default", "y/image/default"]


@pytest.mark.parametrize("kind", SHAPES)
def test_samples_are_shown_as_they_were_written(kind: str, tmp_path: Path) -> None:
    """Pictures and clips to the bit, places of points to half a step of 16 bits."""
    found = reported(make_run(tmp_path / "run", kind))
    for item, data in zip(found["sets"][0]["items"], data_of(kind, 4), strict=True):
        if kind == "pointcloud":
            numbers = np.frombuffer(base64.b64decode(item["points"]), "<u2").reshape(-1, 3)
            assert np.abs(np.array(item["low"]) + numbers * item["step"] - data).max() <= 0.51 * item["step"]
            continue
        drawn = np.asarray(Image.open(io.BytesIO(base64.b64decode(item["src"].partition(",")[2]))))
        if kind == "image":
            assert np.array_equal(drawn, data)
            continue
        width, height, columns = item["width"], item["height"], item["columns"]
        places = [(i // columns * height, i % columns * width) for i in range(item["frames"])]
        assert np.array_equal([drawn[y : y + height, x : x + width] for y, x in places], data)
        assert item["rate"] == 8


def test_a_set_that_was_given_something_shows_it(tmp_path: Path) -> None:
    run, own = make_run(tmp_path / "run"), adapter("pointcloud", ["chair"])
    given = data_of("pointcloud", 1, seed=1)[:, :20]
    made = np.concatenate([given.repeat(2, 0), data_of("pointcloud", 2)[:, :40]], axis=1)
    own.write(Samples(made, np.zeros(2, int), ["chair-0000", "other-0001"]), run / "samples-given-part-seed0")
    own.write(Samples(given, names=["given"]), run / GIVEN / "samples-given-part-seed0")
    plain, completed = reported(run)["sets"]
    assert "given" not in plain
    assert completed["given"]["count"] == 20
    assert [item["held"] for item in completed["items"]] == [20, 20]


def test_sampling_keeps_what_was_given_beside_a_run(tmp_path: Path) -> None:
    """Not in the set itself, which may be measured; nor where the person put the set elsewhere."""
    trainer(run := tmp_path / "run", "trainer.steps=1")[0].run()
    given = data_of("pointcloud", 1)[0, :20]
    picture, *_ = sample_checkpoint(run, num=1, steps=1, given=given, place="fit")
    kept = run / GIVEN / picture.parent.name
    assert np.array_equal(np.load(kept / "given.npy"), given)
    assert [f.name for f in listed(picture.parent)[0]] == ["any-0000"]
    (made,) = reported(run)["sets"]
    assert made["items"][0]["held"] == made["given"]["count"] == 20
    before = sorted(tmp_path.rglob("*"))
    sample_checkpoint(run, num=1, steps=1, given=given, place="fit", out=tmp_path / "out")
    assert {path.relative_to(tmp_path).parts[0] for path in set(tmp_path.rglob("*")) - set(before)} == {"out"}


def test_a_page_is_bounded_and_says_what_it_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path / "run", num=60)
    (run / "log.jsonl").write_text("".join(map(line, range(1, 3001))))
    found = reported(run, samples=7)
    assert len(found["sets"][0]["items"]) == 7
    assert found["sets"][0]["total"] == 60
    monkeypatch.setattr(page, "LARGEST", 12_000)
    text = write_report([run]).read_text()
    assert len(encoded(content_of(run / "report.html"))) < 12_500
    assert len(text) < 150_000
    found = content_of(run / "report.html")[0]
    assert 0 < len(found["sets"][0]["items"]) < 60
    assert found["log"]["steps"][-1] == 3000
    assert found["log"]["every"] > 1


def test_a_budget_counts_what_stands_on_the_page() -> None:
    budget = Budget(30)
    assert budget.keep(["<<", "a", "b" * 9, "c"]) == ["<<", "a", "b" * 9][:2]
    assert budget.left == 30 - len(encoded("<<")) - len(encoded("a")) - 2


def test_large_samples_become_small() -> None:
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (1500, 900, 3), dtype=np.uint8)
    drawn = pictures.packed(Shown(picture=noise))
    assert (drawn["width"], drawn["height"]) == (307, 512)
    assert drawn["src"].startswith("data:image/jpeg")
    clip = pictures.packed(Shown(frames=np.broadcast_to(noise[:400, :600], (200, 400, 600, 3)), rate=25.0))
    assert (clip["frames"], clip["width"], clip["height"]) == (64, 192, 128)
    assert clip["frames"] / clip["rate"] == pytest.approx(200 / 25)  # it lasts as long
    points = rng.normal(size=(9000, 3))
    points[5] = np.nan
    cloud = pictures.packed(Shown(points=points))
    assert (cloud["count"], cloud["of"]) == (4096, 9000)
    assert pictures.held(Shown(points=points[9:]), Shown(points=points[9:3006])) in (1365, 1366)
    with pytest.raises(ValueError, match="finite"):
        pictures.packed(Shown(points=np.full((3, 3), np.inf)))


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


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["no/such"], "must be a run's folder, but there is none"),
        (["empty"], "must be a run's folder, with"),
        (["run", "sampels=3"], "did you mean samples?"),
        (["run", "samples=-1"], "must be a whole number"),
        (["run", "samples=1001"], "between 0 and 1000"),
        (["run", "out=empty"], "must be a file"),
        (["run", "trust=perhaps"], "true or false"),
        (["out=x.html"], "must be named"),
    ],
)
def test_a_mistake_is_one_line(
    words: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    make_run(tmp_path / "run", num=1)
    monkeypatch.setattr(sys, "argv", ["report", *words])
    for stream in ("stdout", "stderr"):
        monkeypatch.setattr(sys, stream, getattr(sys, stream))
    with pytest.raises(SystemExit) as end:
        report.main()
    assert end.value.code == 2
    (only,) = capsys.readouterr().err.strip().splitlines()
    assert only.startswith("error: ")
    assert said in only
    assert not list(tmp_path.rglob("*.html"))


def test_the_command_does_not_load_diffusers(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", num=1)
    code = "import sys; from ditmoe.report import report; report(sys.argv[1:]); assert 'diffusers' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code, str(run)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "open it in a browser" in done.stdout


@pytest.mark.parametrize("error", [None, OSError(28, "No space left"), TypeError("a fault\nof ours")])
def test_a_page_that_fails_is_no_fault_of_the_run(
    error: Exception | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise error

    run = make_run(tmp_path / "run", num=1)
    (run / "report.html").write_text("the old one")
    if error:
        monkeypatch.setattr(page, "describe_run", fails)
    train.finish({"num": 0, "evaluate": False}, run, "train", 20)
    said = capsys.readouterr().out
    assert (re.search("report.html .*browser", said) is None) == (error is not None)
    assert said.count("note: no page of the run was written: ") == (error is not None)
    assert ((run / "report.html").read_text() == "the old one") == (error is not None)


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
