"""What the tests of benchmarks that judge pictures by their prompts share, and those of the models that judge."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.modalities.image.detectors import save_pictures


def written(files: dict[str, bytes], folder: Path) -> Path:
    """A folder of these files."""
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def spoilt(name: str, part: str = "", **more: Any) -> Callable[[Path], Any]:
    """Changes a JSON file of a model's folder, or a section of it."""

    def write(folder: Path) -> None:
        told = json.loads((folder / name).read_text())
        (told[part] if part else told).update(more)
        (folder / name).write_text(json.dumps(told))

    return write


def pickled(folder: Path) -> None:
    """Has the weights in a file that could run code."""
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def sets(folder: Path, prompts: Sequence[str] | None, option: str, file: Path) -> list[str]:
    """Words of `evaluate` for two sets of pictures, the generated one with prompts, and a file of requirements."""
    for name, seed in (("a", 0), ("b", 1)):
        save_pictures(folder / name, 8, seed)
    if prompts is not None:
        (folder / "a" / "prompts.json").write_text(json.dumps({"prompts": prompts}))
    return ["modality=image", "generated=a", "reference=b", f"modality.evaluation.{option}={file}"]
