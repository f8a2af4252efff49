"""Files are written whole or not at all: into a draft that then takes the name, never into what has it."""

import ast
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ditmoe.view import view
from tests.test_hostile import modality

ROOT = Path(__file__).resolve().parents[1]
WRITES = {"write_text", "write_bytes", "savez", "savez_compressed", "save", "save_file", "tofile", "savefig", "dump",
          "imwrite", "copy", "copyfile", "copy2", "SummaryWriter", "touch", "truncate", "ZipFile", "memmap",
          "open_memmap", "NamedTemporaryFile", "mkstemp", "TarFile"}  # fmt: skip
OF_FILES = {"copy": ("shutil",), "truncate": ("os",), "dump": ("json", "pickle", "yaml")}
"""Words that are other things' too: only what these modules mean by them."""
DRAFTS = {"replacing", "replacing_folder"}
ALLOWED = {
    "ditmoe/checkpoint/atomic.py:_created": "makes the draft",
    "ditmoe/checkpoint/atomic.py:replacing": "opens the draft",
    "ditmoe/checkpoint/store.py:finish": "into the draft of `save`",
    "ditmoe/checkpoint/store.py:_written": "into the draft of `save`",
    "ditmoe/checkpoint/sharded.py:write": "into the draft of `store.save`",
    "ditmoe/checkpoint/saver.py:_write": "by `store.save`",
    "ditmoe/training/trainer.py:_save": "by the saver",
    "ditmoe/training/trainer.py:save": "by the saver",
    "modalities/video/codec/training.py:_refine": "by `_save`",
    "modalities/video/codec/training.py:_save": "by `checkpoint.save`",
    "ditmoe/config/screen.py:_fail": "the null device",
    "ditmoe/config/screen.py:_nowhere": "the null device",
    "ditmoe/config/screen.py:install": "the null device",
    "ditmoe/distributed/launch.py:processes": "the null device",
    "ditmoe/training/run_log.py:__init__": "a log, which grows by whole lines; links are refused",
    "modalities/image/data/catalogue.py:list_pictures": "the index, by `cache.store`",
    "modalities/pointcloud/data/catalogue.py:list_shapes": "the index, by `cache.store`",
    "modalities/video/data/catalogue.py:find_videos": "the index, by `cache.store`",
    "modalities/latent/latent_shards.py:_store": "into bytes, which `write` puts there whole",
    "modalities/latent/latent_writer.py:prepare": "into bytes, which `write` puts there whole",
    "ditmoe/text/caption_states.py:_added": "into bytes, which `replacing` puts there whole",
    "modalities/shared/isolation.py:serve": "the null device, and a pipe",
    "modalities/pointcloud/viz/view.py:_write_scene": "a temporary folder, for another process",
}


def name_of(node: ast.expr) -> tuple[str, str]:
    """Of what is called, as `np.save`: ("np", "save")."""
    if isinstance(node, ast.Attribute):
        return (node.value.id if isinstance(node.value, ast.Name) else "", node.attr)
    return "", node.id if isinstance(node, ast.Name) else ""


def is_write(call: ast.Call) -> bool:
    of, name = name_of(call.func)
    if name == "open":
        values = [n for a in (*call.args, *(k.value for k in call.keywords)) for n in ast.walk(a)]
        flags = {n.attr for n in values if isinstance(n, ast.Attribute)}
        modes = [n.value for n in values if isinstance(n, ast.Constant) and isinstance(n.value, str)]
        modes = [m for m in modes if m and set(m) <= set("rwxabt+")]
        return bool(flags & {"O_WRONLY", "O_RDWR", "O_CREAT"}) or any(set(m) & set("wxa+") for m in modes)
    if name in ("ZipFile", "open_memmap"):
        return any(
            isinstance(n, ast.Constant) and n.value in ("w", "w+", "x", "a", "r+") for n in ast.walk(call)
        )
    return name in WRITES and of in OF_FILES.get(name, (of,))


def writes(tree: ast.AST, function: str = "", drafted: bool = False) -> Iterator[tuple[str, int]]:
    """Functions that write, and where, but for what stands in a `with replacing(...)`, or goes into a stream."""
    for node in ast.iter_child_nodes(tree):
        inside, own = function, drafted
        if isinstance(node, ast.FunctionDef):
            inside, own = node.name, False
        if isinstance(node, ast.With):
            calls = [item.context_expr for item in node.items]
            own = own or any(isinstance(c, ast.Call) and name_of(c.func)[1] in DRAFTS for c in calls)
        if isinstance(node, ast.Call) and is_write(node) and not own:
            first = node.args[0] if node.args else None
            if not (isinstance(first, ast.Name) and first.id in ("stream", "drawn")):
                yield function, node.lineno
        yield from writes(node, inside, own)


def test_nothing_is_written_but_into_drafts() -> None:
    found: dict[str, int] = {}
    for file in sorted(f for room in ("ditmoe", "modalities") for f in (ROOT / room).rglob("*.py")):
        for function, line in writes(ast.parse(file.read_text())):
            found[f"{file.relative_to(ROOT)}:{function}"] = line
    unknown = {where: line for where, line in found.items() if where not in ALLOWED}
    assert not unknown, f"write these by `replacing`, or say in ALLOWED why not: {unknown}"
    assert not set(ALLOWED) - set(found), "no longer write"


@pytest.mark.parametrize(
    "line",
    ["open(p, 'w')", "open(p, mode='ab')", "p.open('r+b')", "p.write_text('a')", "np.savez(p, a=a)", "image.save(p)",
     "os.open(p, os.O_WRONLY)", "shutil.copy(a, b)", "save_file(a, p)", "json.dump(a, p)"],
)  # fmt: skip
def test_the_law_sees_what_writes(line: str) -> None:
    assert list(writes(ast.parse(f"def f(p):\n    {line}")))
    assert not list(writes(ast.parse(f"def f(p):\n    with replacing(p) as s:\n        {line}")))


def linked(file: Path) -> Path:
    """A second name of a file that holds what somebody wants to keep."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"old")
    other = file.with_name(f"kept-{file.name}")
    os.link(file, other)
    return other


DATA = {"pointcloud": (9, 3), "image": (8, 8, 3), "video": (2, 8, 8, 3)}


@pytest.mark.parametrize("kind", DATA)
def test_a_second_name_of_a_sample_keeps_what_it_has(kind: str, tmp_path: Path) -> None:
    from ditmoe.modality import Samples

    facts = {"classes": ["a"], "mean": [0, 0, 0], "scale": 1.0, "shape": [1], "stride": [1], "codec": {}}
    adapter = modality(kind, data_facts=facts)
    data = np.random.default_rng(0).random((2, *DATA[kind])).astype(np.float32)
    data = data if kind == "pointcloud" else (255 * data).astype(np.uint8)
    for out in (tmp_path / "folder", tmp_path / "one.npz"):
        samples = Samples(data, np.zeros(2, int), ["a-000", "a-001"])
        paths = [path for path in adapter.write(samples, out) if path.is_file()]
        others = [linked(path) for path in paths if path.unlink() is None]
        adapter.write(samples, out)
        assert all(other.read_bytes() == b"old" for other in others)
        assert all(path.stat().st_size > len(b"old") for path in paths)


@pytest.mark.parametrize("ending", ["png", "npy"])
@pytest.mark.parametrize("error", [None, OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_second_name_of_a_view_keeps_what_it_has(
    ending: str, error: BaseException | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a view that fails midway, or is stopped, leaves the old one."""
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    file = tmp_path / f"a.{ending}"
    if ending == "png":
        Image.new("RGB", (8, 8), (9, 0, 0)).save(file)
    else:
        np.save(file, np.random.default_rng(0).random((20, 3)))
    out = tmp_path / "out" / "view.png"
    other = linked(out)
    if error:

        def fails(*_: object, **__: object) -> None:
            raise error

        monkeypatch.setattr("ditmoe.checkpoint.atomic.os.replace", fails)
        with pytest.raises(type(error)):
            view([str(file), "--out", str(out)])
        assert out.read_bytes() == b"old"
    else:
        view([str(file), "--out", str(out)])
        with Image.open(out) as drawn:
            drawn.load()
    assert other.read_bytes() == b"old"
    assert sorted(path.name for path in out.parent.iterdir()) == ["kept-view.png", "view.png"]
