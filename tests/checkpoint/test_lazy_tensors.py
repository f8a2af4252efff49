"""Tensors left in their file: read as they were written, one at a time, however large the file."""

import json
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ditmoe.checkpoint import LazyTensor, in_memory, open_file, sharded
from ditmoe.outside import paths

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


def tensors() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    made = {str(dtype): torch.randn(3, 5, 2).to(dtype) for dtype in DTYPES}
    return {**made, "scalar": torch.tensor(2.5), "empty": torch.ones(3, 0)}


def same(found: dict, expected: dict) -> bool:
    return found.keys() == expected.keys() and all(
        torch.equal(found[k].read(), v) and found[k].shape == v.shape and found[k].dtype == v.dtype
        for k, v in expected.items()
    )


def test_safetensors(tmp_path: Path) -> None:
    save_file(tensors(), tmp_path / "a.safetensors", metadata={"format": "pt"})
    assert same(open_file(tmp_path / "a.safetensors"), tensors())


def test_torch(tmp_path: Path) -> None:
    big = torch.randn(6, 7)
    odd = {"transposed": big.T, "row": big[2], "corner": big[3:, ::3], "expanded": big[:1].expand(4, 7)}
    torch.save({"deep": {"er": {**tensors(), **odd}}, "step": 3}, tmp_path / "a.pt")
    content = open_file(tmp_path / "a.pt")
    assert content["step"] == 3
    assert same(content["deep"]["er"], {**tensors(), **odd})


def test_files_larger_than_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "may_hold", lambda stored: 2**40)  # this one is all but holes
    rows, size = 10**6, 50_000
    last = rows * size * 4
    places = {"huge": ([rows, size], [0, last]), "last": ([2], [last, last + 8])}
    header = {k: {"dtype": "F32", "shape": s, "data_offsets": o} for k, (s, o) in places.items()}
    text = json.dumps(header).encode()
    file = tmp_path / "huge.safetensors"
    with open(file, "wb") as handle:
        handle.write(len(text).to_bytes(8, "little") + text)
        handle.seek(last, 1)  # 200 GB of nothing, which take no place
        handle.write(torch.tensor([1.5, -2.0]).numpy().tobytes())
    content = open_file(file)
    assert content["huge"].shape == (rows, size)
    assert content["last"].read().tolist() == [1.5, -2.0]


def test_damage_is_named(tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    for data, words in [
        (b"\xff" * 64, "header is longer"),
        (b"hello", "damaged"),
        ((2).to_bytes(8, "little") + b"[]", "damaged"),
        (
            b'\x3d\x00\x00\x00\x00\x00\x00\x00{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,800000]}}  ',
            "its offsets",
        ),
    ]:
        file.write_bytes(data)
        with pytest.raises(ValueError, match=words):
            open_file(file)
    save_file(tensors(), file)
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(ValueError, match="ends too early"):
        [value.read() for value in open_file(file).values()]
    with pytest.raises(FileNotFoundError, match="does not exist"):
        open_file(tmp_path / "nowhere.pt")


def written(file: Path, header: str, body: bytes = b"") -> Path:
    """A safetensors file with any header."""
    file.write_bytes(len(header.encode()).to_bytes(8, "little") + header.encode() + body)
    return file


@pytest.mark.parametrize(
    "change",
    [None, 5, [], "x", {"shape": None}, {"data_offsets": None}, {"data_offsets": [0]}, {"dtype": []}],
)
def test_what_describes_no_tensor_is_named_with_what_it_must_have(tmp_path: Path, change: object) -> None:
    entry = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    text = json.dumps({"weight": {**entry, **change} if isinstance(change, dict) else change})
    with pytest.raises(
        ValueError, match=r"^[^\n]*: weight must have a type, and a shape and two offsets of whole"
    ):
        open_file(written(tmp_path / "a.safetensors", text, bytes(4)))
    for header in ("[]", "null", "5"):
        with pytest.raises(ValueError, match="its header must be an object of tensors, got"):
            open_file(written(tmp_path / "a.safetensors", header))


def test_compressed_and_swapped_files_are_refused(tmp_path: Path) -> None:
    torch.save(tensors(), tmp_path / "a.pt")
    for name, change in (("compressed", zipfile.ZIP_DEFLATED), ("byte order", zipfile.ZIP_STORED)):
        with (
            zipfile.ZipFile(tmp_path / "a.pt") as old,
            zipfile.ZipFile(tmp_path / "b.pt", "w", change) as new,
        ):
            for info in old.infolist():
                swap = name == "byte order" and info.filename.endswith("byteorder")
                new.writestr(info.filename, b"big" if swap else old.read(info))
        with pytest.raises(ValueError, match=name):
            open_file(tmp_path / "b.pt")


def test_stored_is_what_it_says(tmp_path: Path) -> None:
    torch.save({"a": torch.arange(6.0).view(2, 3)}, tmp_path / "a.pt")
    value = open_file(tmp_path / "a.pt")["a"]
    assert isinstance(value, LazyTensor)
    assert (value.shape, value.stride, value.dtype) == ((2, 3), (3, 1), torch.float32)


def test_many_tensors_of_few_numbers_are_refused_before_they_become_many(tmp_path: Path) -> None:
    numbers = torch.zeros(50_000)
    torch.save([numbers.view(50_000), numbers.view(100, 500)], tmp_path / "tied.pt")
    assert len(open_file(tmp_path / "tied.pt")) == 2
    torch.save([numbers.view(50_000) for _ in range(2000)], tmp_path / "far.pt")
    with pytest.raises(ValueError, match="share storages"):
        open_file(tmp_path / "far.pt")


@pytest.mark.parametrize(
    ("dtype", "shape", "size"), [("F8_E4M3", [1], 1), ("F32", [0, 2**70], 0), ("F32", [0, 2**62, 4], 0)]
)
def test_types_and_shapes_that_no_tensor_has_are_one_line(
    tmp_path: Path, dtype: str, shape: list, size: int
) -> None:
    entry = {"dtype": dtype, "shape": shape, "data_offsets": [0, size]}
    text = json.dumps({"a": entry}).encode()
    file = tmp_path / "a.safetensors"
    file.write_bytes(len(text).to_bytes(8, "little") + text + bytes(size))
    with pytest.raises(ValueError, match=r"^[^\n]*$"):
        in_memory(open_file(file)["a"])
    for header in ("[" * 100_000, text.decode()):
        file.write_bytes(len(header).to_bytes(8, "little") + header.encode() + bytes(size))
        if header[0] == "[" or size:
            with pytest.raises(ValueError, match=r"^[^\n]*$"):
                sharded.open_folder(tmp_path, ["a.safetensors"])


def shard(file: Path, pieces: dict[str, tuple[list[int], torch.Tensor]]) -> None:
    begins = {name: {"saved_offsets": begin} for name, (begin, _) in pieces.items()}
    tensors = {name: tensor.contiguous() for name, (_, tensor) in pieces.items()}
    save_file(tensors, file, {"DCP_SHARDING_INFO": json.dumps(begins)})


WHOLE = torch.arange(24.0).view(4, 6)
GRID = [([0, 0], WHOLE[:3, :2]), ([0, 2], WHOLE[:3, 2:]), ([3, 0], WHOLE[3:, :2]), ([3, 2], WHOLE[3:, 2:])]


def opened(folder: Path, pieces: list[tuple[list[int], torch.Tensor]]) -> sharded.Pieces:
    names = [f"{number}.safetensors" for number in range(len(pieces))]
    for name, piece in zip(names, pieces, strict=True):
        shard(folder / name, {"a": piece})
    return sharded.open_folder(folder, names)["a"]


def test_pieces_are_the_whole(tmp_path: Path) -> None:
    for pieces in (GRID, [([0, 0], WHOLE)], [*GRID[::-1], ([4, 0], WHOLE[:0])]):
        assert torch.equal(opened(tmp_path, pieces).read(), WHOLE)


@pytest.mark.parametrize(
    "pieces",
    [
        [GRID[0], GRID[0], GRID[3], GRID[2], GRID[2], GRID[2], GRID[2]],  # as many numbers as the whole
        [([0, 0], WHOLE[:2]), ([1, 0], WHOLE[:1]), ([3, 0], WHOLE[3:])],
        [([0, 0], WHOLE[:2]), ([0, 0], WHOLE[:1]), ([3, 0], WHOLE[3:])],
        [([1, 0], WHOLE[:1]), ([1, 0], WHOLE[:1])],
        [GRID[0], GRID[1], GRID[2], ([3, 2], WHOLE[3:, 2:].double())],
    ],
)
def test_pieces_that_overlap_or_leave_gaps_are_refused(tmp_path: Path, pieces: list) -> None:
    """Else what lay in memory before would be weights."""
    with pytest.raises(ValueError, match=r"^[^\n]* is damaged: the pieces of a [^\n]*$"):
        opened(tmp_path, pieces)
