"""The page of a run: whoever made the run, it executes nothing, loads nothing, is bounded, and shows what is there."""

import base64
import hashlib
import html.parser
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ditmoe import report, train
from ditmoe.given import GIVEN
from ditmoe.inference import sample_checkpoint
from ditmoe.modality import Samples, Shown
from ditmoe.reporting import page, pictures, write_report
from ditmoe.reporting.budget import Budget, encoded
from ditmoe.reporting.samples import listed
from tests.reporting.runs import SHAPES, adapter, content_of, data_of, line, make_run, reported
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


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["no/such"], "must be a run's folder, but there is none"),
        (["empty"], "must be a run's folder, with"),
        (["run", "sampels=3"], "did you mean samples?"),
        (["run", "samples=-1"], "must be a whole number"),
        (["run", "samples=1001"], "between 0 and 1000"),
        (["run", "out=empty"], "must be a file of HTML"),
        (["run", "out=run/log.jsonl"], "must be a file of HTML"),
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


def test_a_page_of_another_program_is_replaced_only_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    runs = [make_run(tmp_path / name, num=1) for name in "ab"]
    (tmp_path / "report.html").write_text("<html>tests passed")
    with pytest.raises(
        ValueError, match=r"report\.html is no page of ditmoe: name the file to write with out="
    ):
        write_report(runs)
    assert (tmp_path / "report.html").read_text() == "<html>tests passed"
    write_report(runs, out="report.html")
    write_report(runs)


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
    (run / "report.html").write_text(old := f"{page.POLICY}: the old one")
    if error:
        monkeypatch.setattr(page, "describe_run", fails)
    train.finish({"num": 0, "evaluate": False}, run, "train", 20)
    said = capsys.readouterr().out
    assert (re.search("report.html .*browser", said) is None) == (error is not None)
    assert said.count("note: no page of the run was written: ") == (error is not None)
    assert ((run / "report.html").read_text() == old) == (error is not None)
