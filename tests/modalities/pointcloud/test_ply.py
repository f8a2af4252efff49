"""PLY whose lists have differing lengths."""

import tracemalloc

import numpy as np
import pytest

from modalities.pointcloud.data.ply import read_ply


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("longest", [2, 300])
def test_lists_of_differing_lengths_are_read_row_by_row(order: str, longest: int) -> None:
    """As a plain loop would, in little memory: a small file of short lists took a kilobyte for each."""
    rng, num = np.random.default_rng(0), 4000
    kinds = {"vertex_indices": ("i1", "i4"), "weights": ("u2", "f8")}
    body, faces = b"", []
    for row in range(num):
        numbers = [rng.integers(0, 4, rng.integers(0, longest if row % 50 else 3)) for _ in kinds]
        for values, (count, kind) in zip(numbers, kinds.values(), strict=True):
            values = values[:100]
            body += np.array(len(values), order + count).tobytes() + values.astype(order + kind).tobytes()
        body += b"\7"
        faces += [numbers[0][[0, i, i + 1]] for i in range(1, min(100, len(numbers[0])) - 1)]
    written = {"<": "little", ">": "big"}[order]
    names = {"i1": "char", "u2": "ushort", "i4": "int", "f8": "double"}
    lists = "".join(f"property list {names[a]} {names[b]} {name}\n" for name, (a, b) in kinds.items())
    axes = "".join(f"property float {axis}\n" for axis in "xyz")
    head = f"ply\nformat binary_{written}_endian 1.0\nelement vertex 4\n{axes}"
    head += f"element face {num}\n{lists}property uchar a\nend_header\n"
    vertices = np.zeros((4, 3), order + "f4")
    content = head.encode() + vertices.tobytes() + body
    tracemalloc.start()
    found = read_ply(content)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert sorted(map(tuple, found.faces)) == sorted(map(tuple, faces))
    assert peak < 2**22 + 16 * len(content)
    with pytest.raises(ValueError, match="truncated"):
        read_ply(content[:-1])
