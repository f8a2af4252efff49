"""The page in a browser, where Gradio and Chromium are: a person draws, stops, errs, gives a file, and downloads."""

import http.client
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from ditmoe.inference import sample_checkpoint
from modalities.video.io.reader import read_clip
from tests.browser import BROWSER, Browser

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("gradio") is None, reason="Gradio is not installed (extra demo)"
    ),
    pytest.mark.skipif(BROWSER is None, reason="no Chromium on PATH"),
]
ROOT = Path(__file__).resolve().parents[2]
SERVES = """
import socket, sys
told = open(sys.argv.pop(1), "a")
connect, ask = socket.socket.connect, socket.getaddrinfo

def watched(own, address):
    if own.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in ("127.0.0.1", "localhost", "::1"):
        print("connect", address, file=told, flush=True)
    return connect(own, address)

def asked(host, *others, **more):
    if host not in ("127.0.0.1", "localhost", "::1", None):
        print("ask", host, file=told, flush=True)
    return ask(host, *others, **more)

socket.socket.connect, socket.getaddrinfo = watched, asked
from ditmoe import demo
demo.main()
"""
ALERT = "document.querySelector('#told .error')?.innerText"
FRAME = "document.querySelector('#shown iframe')?.src"
LINKS = "[...document.querySelectorAll('#files a')].map((link) => link.href)"
IDLE = "document.querySelector('#draw') && !document.querySelector('#draw').disabled"


@pytest.fixture
def served(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[tuple[str, Path]]:
    """The address of the page of a starter model, and a file of what the server asked of other machines."""
    told, folder = tmp_path / "network", tmp_path / "temporary"
    folder.mkdir()
    told.touch()
    process = subprocess.Popen(
        [sys.executable, "-c", SERVES, str(told), f"checkpoint=starter/{request.param}", "upload=1"], cwd=ROOT,
        stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(folder)},
    )  # fmt: skip
    try:
        assert process.stdout is not None
        address = re.search(r"http://127\.0\.0\.1:\d+", process.stdout.readline())
        assert address
        yield address[0], told
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        assert [*folder.glob("ditmoe-*")] == []  # uploads and drawings are gone
    finally:
        if process.poll() is None:
            process.kill()


@pytest.mark.parametrize("served", ["pointcloud"], indirect=True)
def test_a_person_draws(served: tuple[str, Path], tmp_path: Path) -> None:
    address, told = served
    with Browser(tmp_path / "profile") as browser:
        browser.open(address)
        browser.until(IDLE)

        browser.fill("#steps input", "0")  # a mistake is one line
        browser.click("#draw")
        browser.until(ALERT)
        assert browser.value(ALERT) == "error: steps must be a whole number from 1 to 1000, got 0"
        browser.until(IDLE)

        browser.fill("#steps input", "1000")
        browser.click("#draw")
        browser.until("!document.querySelector('#stop').disabled")
        browser.until("/drawing/.test(document.querySelector('#shown').parentElement.innerText)")
        browser.click("#stop")
        browser.until("document.querySelector('#told').innerText === 'stopped'")
        browser.until(IDLE)

        browser.fill("#steps input", "2")
        browser.fill("#num input[type=number]", "2")
        browser.fill("#seed input", "3")
        browser.click("#draw")
        browser.until("document.querySelector('#shown iframe')")
        browser.until("[...document.querySelectorAll('#files a')].length >= 5")
        own = {
            file.name: file
            for file in sample_checkpoint("starter/pointcloud", 2, 3, out=tmp_path / "o", steps=2)
        }
        links = browser.value(LINKS)
        found = {link.rpartition("/")[2]: link for link in links}
        assert found.keys() == own.keys()
        for name, link in found.items():  # to the bit what `sample` draws
            assert urllib.request.urlopen(link).read() == own[name].read_bytes(), name

        np.savetxt(tmp_path / "<b>scan.xyz", np.random.default_rng(0).normal(size=(100, 3)) / 10)
        (tmp_path / "large.xyz").write_text("0 0 0\n" * 200_000)
        frame = browser.value("document.querySelector('#shown iframe').src")
        browser.value("document.querySelector('button.label-wrap').click()")  # more fields
        browser.until("document.querySelector('#given input[type=file]')")
        browser.choose_file("#given input[type=file]", tmp_path / "<b>scan.xyz")
        browser.until("/scan/.test(document.querySelector('#given').innerText)")
        browser.until(IDLE)
        browser.click("#draw")
        browser.until(f"document.querySelector('#shown iframe').src !== {frame!r}")
        assert "held by replacement" in browser.value("document.querySelector('#told').innerText")
        given = browser.value("document.querySelector('#shown iframe').src")

        browser.resize(390, 844)
        assert browser.value("document.documentElement.scrollWidth") <= 390
        assert not [url for url in browser.asked if not url.startswith((address, "data:", "blob:", "about:"))]
        assert browser.errors == []

        browser.open(given)  # the samples by themselves: clouds turn
        browser.until("document.querySelector('.sample:not(.given) canvas.cloud')")
        drawn = (  # a number for what is seen
            "[...document.querySelector('.sample:not(.given) canvas.cloud').getContext('2d')"
            ".getImageData(0, 0, 380, 380).data].reduce((sum, value, i) => (31 * sum + value * (i % 7)) % 1e9, 0)"
        )
        browser.until(f"{drawn} > 0")
        before = browser.value(drawn)
        browser.value(
            "document.querySelector('.sample:not(.given) canvas.cloud').dispatchEvent("
            "new KeyboardEvent('keydown', {key: 'ArrowRight'}))"
        )
        browser.until(f"{drawn} !== {before}")
        assert browser.value("document.querySelectorAll('.sample').length") == 3
    for path in ("/gradio_api/file=/etc/hostname", "/docs", "/drawn/nothing"):
        with pytest.raises(urllib.error.HTTPError, match=r"40[34]"):
            urllib.request.urlopen(address + path)
    asking = http.client.HTTPConnection(address.removeprefix("http://"))
    asking.putrequest("POST", "/gradio_api/upload")
    asking.putheader("content-length", str(3 * 10**6))
    asking.endheaders()  # the answer comes before the content, which cannot be sent to its end then
    assert asking.getresponse().status == 413
    asking.close()
    assert told.read_text() == ""


def drawn_with(browser: Browser, **words: str) -> dict[str, bytes]:
    """What a person can download after a click on Draw, by name, with some fields filled before."""
    for name, value in words.items():
        browser.fill(f"#{name} input[type=number], #{name} textarea, #{name} input", value)
    frame, links = browser.value(FRAME), browser.value(LINKS)
    browser.click("#draw")
    browser.until(f"{FRAME} && {FRAME} !== {json.dumps(frame)} && {LINKS}.length")
    browser.until(f"!{LINKS}.some((link) => {json.dumps(links)}.includes(link))")
    browser.until(IDLE)
    return {link.rpartition("/")[2]: urllib.request.urlopen(link).read() for link in browser.value(LINKS)}


def frames_of(file: Path, data: bytes) -> np.ndarray:
    """The frames of a video."""
    file.write_bytes(data)
    return read_clip(file, 0, 17)


@pytest.mark.parametrize(
    ("served", "kind"), [(kind, kind) for kind in ("image", "video")], indirect=["served"]
)
def test_pictures_and_clips_are_seen_and_downloaded(
    served: tuple[str, Path], kind: str, tmp_path: Path
) -> None:
    """They are those of `sample`, the same for the same seed, and others for another."""
    address, told = served
    with Browser(tmp_path / "profile") as browser:
        browser.open(address)
        browser.until(IDLE)
        first = drawn_with(browser, steps="2", num="1", seed="5")
        own = {
            file.name: file.read_bytes()
            for file in sample_checkpoint(f"starter/{kind}", 1, 5, out=tmp_path / "own", steps=2)
        }
        assert first.keys() == own.keys()
        pictures = [name for name in own if name.endswith(".png")]
        assert [first[name] for name in pictures] == [own[name] for name in pictures]
        for name in own.keys() - pictures:  # an encoder may write other bytes for the same frames
            frames = [frames_of(tmp_path / name, files[name]) for files in (first, own)]
            assert np.array_equal(*frames), name
            assert len(frames[0]) == 17

        assert drawn_with(browser)["samples.png"] == first["samples.png"]
        for word, value in {"seed": "6", "guidance": "4", "steps": "3"}.items():
            other = drawn_with(browser, **{word: value})
            assert other["samples.png"] != first["samples.png"], word
            first = other
        browser.value("[...document.querySelectorAll('button.label-wrap')].at(-1).click()")
        browser.until("document.querySelector('#command')")
        command = browser.value("document.querySelector('#command').textContent").strip()
        assert command.endswith(f"checkpoint=starter/{kind} num=1 seed=6 steps=3 guidance=4.0")

        browser.fill("#seed input", "a")  # letters do not enter a field for numbers: it is empty
        browser.click("#draw")
        browser.until(ALERT)
        assert browser.value(ALERT) == "error: seed must be a whole number, got none"
        browser.until(IDLE)

        browser.resize(390, 844)
        drawn_with(browser, seed="7")
        browser.until("document.querySelector('#shown').getBoundingClientRect().top < innerHeight - 300")
        assert browser.value("document.documentElement.scrollWidth") <= 390

        browser.open(browser.value(FRAME))
        {"image": see_picture, "video": see_clip}[kind](browser)
        assert browser.errors == []
        assert all(url.startswith((address, "data:", "blob:", "about:")) for url in browser.asked)
    assert told.read_text() == ""


def see_picture(browser: Browser) -> None:
    """One is there, and a click enlarges it."""
    browser.until("document.querySelector('.sample img')?.naturalWidth === 32")
    small = browser.value("document.querySelector('.sample img').clientWidth")
    browser.resize(1280, 900)
    browser.click(".sample .picture")
    browser.until(f"document.querySelector('dialog[open] img')?.clientWidth > {small}")


def see_clip(browser: Browser) -> None:
    """One plays, and stands still when it is told to."""
    frame = "Number(document.querySelector('dialog[open] input[type=range]').value)"
    browser.until("document.querySelector('.sample canvas.frames')")
    browser.click(".sample .larger")
    browser.until("document.querySelector('dialog[open] canvas.frames')")
    browser.until(f"{frame} > 2")
    browser.click("dialog[open] .play")
    at = browser.value(frame)
    time.sleep(0.5)
    assert browser.value(frame) == at
    pixels = "document.querySelector('dialog[open] canvas').getContext('2d').getImageData(0, 0, 32, 32).data"
    assert browser.value(f"new Set({pixels}).size") > 2
