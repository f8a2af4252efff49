"""What the page asks for and draws: to the bit what `sample` draws, within bounds, and stoppable; without Gradio."""

import asyncio
import importlib.machinery
import importlib.util
import itertools
import re
import shlex
import sys
import threading
import time
from contextlib import suppress
from dataclasses import MISSING, fields
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image

from ditmoe import demo, sample
from ditmoe.config.folders import config_folder
from ditmoe.config.restore import restore
from ditmoe.inference import ModelWords
from ditmoe.model import num_parameters
from ditmoe.serving.drawer import UNTOLD, Drawer, StoppedError, command_of
from ditmoe.serving.form import fields_of, read, refuse_in_a_line, take_uploads_alone
from ditmoe.serving.server import BESIDE, Guard, bound, has_room, temporary_folder
from ditmoe.serving.shown import page_of
from modalities.video.io.reader import read_clip

KINDS = ("pointcloud", "image", "video")


@pytest.fixture(scope="module")
def drawers() -> Any:
    found = {kind: Drawer(ModelWords(f"starter/{kind}")) for kind in KINDS}
    yield found
    for drawer in found.values():
        drawer.close()


def files_of(folder: Path) -> dict[str, bytes]:
    """Their bytes by name; of a Matroska, which bears a number that is drawn anew each time, the frames, and nothing of
    an MP4, whose encoder does not always write the same bytes for the same frames."""
    read_as = {".mkv": lambda file: read_clip(file, 0, 5).tobytes(), ".mp4": lambda file: b""}
    return {file.name: read_as.get(file.suffix, Path.read_bytes)(file) for file in folder.iterdir()}


def values_of(drawer: Drawer, **said: Any) -> dict[str, Any]:
    """What stands in the fields when a person has changed some."""
    return {each.name: each.default for each in fields_of(drawer.restored, 16)} | said


def by_sample(command: str, out: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """What the command writes."""
    words = shlex.split(command)
    assert words[:3] == ["python", "-m", "ditmoe.sample"]
    monkeypatch.setattr(sys, "argv", ["sample", *words[3:], f"out={out}"])
    sample.main()
    return files_of(out)


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("pointcloud", {"label": "chair", "num": 2, "top_k": 1, "points": "300", "seed": 5}),
        ("image", {"num": 3, "guidance": 3.0}),
        ("video", {"label": "none", "num": 1, "frames": "5"}),
    ],
)
def test_what_is_drawn_is_what_sample_draws(
    kind: str, said: dict[str, Any], drawers: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the bit, by the command that the page shows; also after another drawing with other experts."""
    drawer = drawers[kind]
    fields = fields_of(drawer.restored, 16)
    steps: list[tuple[int, int]] = []
    for name in ("first", "again"):
        words = read(fields, values_of(drawer, steps=2, **said), tmp_path)
        drawn = drawer.draw(words, tmp_path / name, on_step=lambda *at: steps.append(at), beat=0.01)
        drawer.draw({"num": 1, "seed": 0, "steps": 1, "top_k": 3}, tmp_path / f"{name}-other")
    assert all(0 <= done <= total == 2 for done, total in steps)
    own = files_of(tmp_path / "first" / "samples")
    assert {path.name for path in drawn.paths} <= own.keys()
    assert own == files_of(tmp_path / "again" / "samples")
    assert own == by_sample(command_of(words, drawer.models), tmp_path / "sampled", monkeypatch)
    text = page_of(tmp_path / "first", type(drawer.files), drawer.restored.modality.classes, said["num"])
    assert text.count(f'"{drawn.paths[-1].stem}"') == 1


@pytest.mark.parametrize(
    "said",
    [
        {"weights": "int8", "offload": "experts", "expert_cache": 1e-4},
        {"guidance_model": "starter/image", "first_block_cache": 1000.0, "trust": ["a b"]},
    ],
)
def test_words_of_the_model_are_those_of_sample(
    said: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the bit what the command draws that the page shows, and not what is drawn without them; also of its size."""
    drawer = Drawer(ModelWords("starter/image", **said))
    drawer.draw(words := {"num": 2, "seed": 1, "steps": 3, "label": "3"}, tmp_path / "own")
    drawer.close()
    own = files_of(tmp_path / "own" / "samples")
    command = command_of(words, drawer.models)
    assert own == by_sample(command, tmp_path / "sampled", monkeypatch)
    assert own != by_sample(command_of(words, ModelWords("starter/image")), tmp_path / "plain", monkeypatch)
    plain = sum(p.numel() for p in restore("starter/image").model.parameters())
    assert num_parameters(drawer.restored.model) == plain
    assert drawer.about().startswith("image, 0.422 M parameters; ")


def test_commands_that_draw_share_the_words_of_the_model() -> None:
    """Each takes all of them, as they are where nobody says anything, and says the same of them."""
    own = {f.name: None if f.default is MISSING else f.default for f in fields(ModelWords)}
    said = {}
    for command in ("sample", "evaluate", "demo"):
        text = (config_folder() / f"{command}.yaml").read_text()
        options = OmegaConf.create(text)
        assert {n: OmegaConf.select(options, n, throw_on_missing=False) for n in own} == own
        shared = (re.search(rf"^{name}: .*?# (.*)", text, re.M) for name in own if name not in UNTOLD)
        said[command] = [each and each[1] for each in shared]
    assert said["sample"] == said["evaluate"] == said["demo"]


def test_uploads_are_what_given_is(drawers: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uploads = tmp_path / "uploads"
    uploads.mkdir()
    noise = np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)
    hole = np.zeros((32, 32, 3), np.uint8)
    hole[:, 16:] = 255
    for name, pixels in {"given": noise, "mask": hole}.items():
        Image.fromarray(pixels).save(uploads / f"{name}.png")
    drawer = drawers["image"]
    given = {"given": [str(uploads / "given.png")], "mask": str(uploads / "mask.png")}
    words = read(fields_of(drawer.restored, 16), values_of(drawer, steps=2, num=1, **given), uploads)
    drawn = drawer.draw(words, tmp_path / "drawn")
    assert "replacement" in drawn.told[0]
    assert np.array_equal(drawn.samples.data[0][:, :16], noise[:, :16])
    sampled = by_sample(command_of(words, drawer.models), tmp_path / "sampled", monkeypatch)
    assert files_of(tmp_path / "drawn" / "samples") == sampled


def test_a_drawing_is_stopped_by_who_began_it(drawers: Any, tmp_path: Path) -> None:
    drawer = drawers["image"]
    words = {"num": 1, "seed": 0, "steps": 10_000}
    answers: list[bool] = []

    def stop(done: int, total: int) -> None:
        answers.extend([drawer.stop("somebody else"), drawer.stop("me")])

    with pytest.raises(StoppedError):
        drawer.draw(words, tmp_path, "me", on_step=stop, beat=0.01)
    assert answers[:2] == [False, True]
    assert not drawer.stop("me")
    assert not any(tmp_path.iterdir())
    drawer.draw(words | {"steps": 1}, tmp_path, "me")


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ({"num": 17}, "num must be a whole number from 1 to 16, got 17"),
        ({"num": None}, "num must be a whole number, got none"),
        ({"seed": 2**53}, "seed must be a whole number from 0"),
        ({"steps": 2.5}, "steps must be a whole number from 1 to 1000, got 2.5"),
        ({"steps": True}, "steps must be a whole number"),
        ({"guidance": float("nan")}, "guidance must be a number, got nan"),
        ({"guidance": "a"}, "guidance must be a number, got a"),
        ({"guidance": 10**400}, "guidance must be a number, got 1000"),
        ({"seed": 10**400}, "seed must be a whole number from 0"),
        ({"num": -(10**400)}, "num must be a whole number from 1 to 16, got -1000"),
        ({"label": "../etc"}, "label must be one of its choices"),
        ({"size": "/etc/passwd"}, "size must be a number, a list"),
        ({"size": '["/etc/passwd"]'}, "size must be a number, a list"),
        ({"size": "[" * 1000}, "size must be a number, a list"),
        ({"size": "1e999"}, "size must be a finite number"),
        ({"size": "9" * 30}, "size must be a whole number of 64 bits"),
        ({"size": "x" * 3000}, "size must have at most 2000 letters"),
        ({"given": ["/etc/hostname"]}, "given must be a file that was uploaded"),
        ({"given": ["uploads/../../etc/hostname"]}, "given must be a file that was uploaded"),
        ({"given": ["a"] * 9}, "given must be at most 8 files, got 9"),
    ],
)
def test_what_no_field_can_hold(said: dict[str, Any], told: str, drawers: Any, tmp_path: Path) -> None:
    fields = fields_of(drawers["image"].restored, 16)
    with pytest.raises(ValueError, match=told.replace("[", r"\[")) as error:
        read(fields, values_of(drawers["image"], **said), tmp_path)
    assert "\n" not in str(error.value)


def test_a_link_among_uploads_leads_nowhere(drawers: Any, tmp_path: Path) -> None:
    (tmp_path / "uploads").mkdir()
    (tmp_path / "secret.png").touch()
    (tmp_path / "uploads" / "a.png").symlink_to(tmp_path / "secret.png")
    fields, said = fields_of(drawers["image"].restored, 4), {"given": str(tmp_path / "uploads" / "a.png")}
    with pytest.raises(ValueError, match="given must be a file that was uploaded"):
        read(fields, values_of(drawers["image"], **said), tmp_path / "uploads")


@pytest.mark.parametrize(
    ("method", "headers", "status"),
    [
        ("GET", {"host": "127.0.0.1:7860"}, 200),
        ("GET", {"host": "localhost:7860", "origin": "http://localhost:7860"}, 200),
        ("GET", {"host": "evil.example:7860"}, 403),  # DNS rebinding
        ("GET", {}, 403),
        ("POST", {"host": "127.0.0.1:7860", "origin": "http://evil.example", "content-length": "1"}, 403),
        ("POST", {"host": "127.0.0.1:7860", "origin": "null", "content-length": "1"}, 403),
        ("POST", {"host": "127.0.0.1:7860", "content-length": "10"}, 200),
        ("POST", {"host": "127.0.0.1:7860", "content-length": "11"}, 413),
        ("POST", {"host": "127.0.0.1:7860"}, 411),
    ],
)
def test_pages_of_other_sites_are_not_answered(method: str, headers: dict[str, str], status: int) -> None:
    sent: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def send(message: Any) -> None:
        sent.append(message)

    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "method": method, "path": "/", "headers": raw}
    asyncio.run(Guard(app, 10)(scope, None, send))
    assert sent[0]["status"] == status
    assert (status == 200) == (b"content-security-policy" in dict(sent[0]["headers"]))


def answered(method: str, path: str, length: int | None = None, **limits: Any) -> list[int]:
    """The status of a request to a guarded application, whose own answer is 200."""
    codes: list[int] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        codes.append(200)

    async def send(message: Any) -> None:
        codes.extend([message["status"]] if "status" in message else [])

    headers = [(b"host", b"127.0.0.1:7860")]
    headers += [] if length is None else [(b"content-length", b"%d" % length)]
    scope = {"type": "http", "method": method, "path": path, "headers": headers}
    asyncio.run(Guard(app, **limits)(scope, None, send))
    return codes


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/gradio_api/file=http://example.com/x", 403),
        ("/file=HTTPS://example.com/x", 403),
        ("/gradio_api/proxy=https://example.com", 403),
        ("/gradio_api/file=/tmp/a/http.png", 200),
    ],
)
def test_nothing_is_fetched_for_a_request(path: str, status: int) -> None:
    """Gradio asked dns.google for the address, and would have answered with what is there."""
    assert answered("GET", path, most=10) == [status]


def test_all_uploads_together_are_bounded(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * 90)
    room = partial(has_room, tmp_path, 100)
    for length, status in ((10, 200), (11, 507)):
        assert answered("POST", "/gradio_api/upload", length, most=50, room=room) == [status]


@pytest.mark.parametrize(("path", "status"), [("/gradio_api/upload", 200), ("/gradio_api/queue/join", 413)])
def test_only_an_upload_is_large(path: str, status: int) -> None:
    """A hundred thousand paths in one request kept Gradio from answering all others for minutes."""
    assert answered("POST", path, BESIDE + 1, most=2 * BESIDE) == [status]


def test_a_folder_that_is_still_written_to_is_removed() -> None:
    """By a thread of Gradio, whose upload goes on for a while after Ctrl-C."""
    ended = threading.Event()

    def write(folder: Path) -> None:
        until = time.monotonic() + 0.5
        for number in itertools.count():
            if time.monotonic() > until:
                break
            with suppress(FileNotFoundError):
                (folder / str(number)).touch()
        ended.set()

    with temporary_folder("ditmoe-test-") as folder:
        threading.Thread(target=write, args=(folder,)).start()
        while not any(folder.iterdir()):
            time.sleep(0.01)
    ended.wait(10)
    assert not folder.exists()


def test_a_request_that_makes_up_a_path_has_nothing_copied_or_fetched(tmp_path: Path) -> None:
    moved: list[Any] = []
    part = SimpleNamespace(
        move_resource_to_block_cache=moved.append, async_move_resource_to_block_cache=moved.append
    )
    (tmp_path / "uploads").mkdir()
    (tmp_path / "uploads" / "own.png").touch()
    take_uploads_alone(part, tmp_path / "uploads")
    strange = ("/etc/passwd", "/dev/zero", "http://127.0.0.1:1/x", str(tmp_path / "uploads" / ".." / "x"))
    for path in strange:
        for move in (part.move_resource_to_block_cache, part.async_move_resource_to_block_cache):
            with pytest.raises(ValueError, match="must be one that was uploaded"):
                move(path)
    part.move_resource_to_block_cache(None)
    part.move_resource_to_block_cache(tmp_path / "uploads" / "own.png")
    assert moved == [None, tmp_path / "uploads" / "own.png"]


@pytest.mark.parametrize(
    "error", [TypeError("'<' not supported"), ValueError("a\nb\x1b <i>"), OSError("x" * 10**6)]
)
def test_what_gradio_cannot_take_is_refused_in_a_line(error: Exception) -> None:
    async def take(*values: Any, state: Any) -> Any:
        raise error

    page = SimpleNamespace(preprocess_data=take)
    refuse_in_a_line(page, lambda text: LookupError(text))
    with pytest.raises(LookupError) as told:
        asyncio.run(page.preprocess_data(1, [{}], state=None))
    text = str(told.value)
    assert len(text) < 200
    assert text.isprintable()
    assert "<" not in text
    assert told.value.__suppress_context__


def test_only_this_machine_is_listened_to() -> None:
    with bound(None) as first, bound(None) as second:
        addresses = first.getsockname(), second.getsockname()
        assert {host for host, _ in addresses} == {"127.0.0.1"}
        assert addresses[0] != addresses[1]
        with pytest.raises(OSError, match=f"port {addresses[0][1]} of 127.0.0.1 must be free: .*; port="):
            bound(addresses[0][1])


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "the page is made by Gradio, which is not installed: pip install 'ditmoe[demo]'"),
        (["most=33"], "most must be between 1 and 32, got 33"),
        (["port=0"], "port must be between 1 and 65535, got 0"),
        (["offload=all"], "offload must be experts, got 'all'"),
        (["first_block_cache=-1"], "first_block_cache must be between 0 and 1000, got -1"),
    ],
)
def test_the_command_says_in_one_line_what_is_wrong(
    words: list[str], told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = importlib.util.find_spec
    there = None if "Gradio" in told else importlib.machinery.ModuleSpec("gradio", None)
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, *_: there if name == "gradio" else found(name)
    )
    monkeypatch.setattr(sys, "argv", ["demo", "checkpoint=starter/image", *words])
    with pytest.raises(SystemExit) as end:
        demo.main()
    assert end.value.code == 2
    assert capsys.readouterr().err == f"error: {told}\n"
