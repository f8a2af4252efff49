"""The index of a pipeline's folder, by which diffusers finds ditmoe's classes in the installed package.

diffusers imports no package because a folder names it. So the folder holds `pipeline.py`, which imports ditmoe when a
person passes `trust_remote_code=True` to `diffusers.DiffusionPipeline`, and the index names components by the names
that ditmoe adds to diffusers: of a repository on the hub, diffusers downloads those of no other library.
`ditmoe.Pipeline` executes nothing in a folder, this file included.
"""

import json
from pathlib import Path
from typing import Any

from ditmoe.checkpoint import replacing

INDEX, CODE = "model_index.json", "pipeline.py"
PIPELINE = "DiTMoEPipeline"
CLASS = [Path(CODE).stem, PIPELINE]
"""How an index names a class in a file of its folder."""
TEXT = '''\
"""Run by diffusers where trust_remote_code=True: the class is that of the installed package ditmoe."""

try:
    from ditmoe.pipelines import DiTMoEPipeline
except ModuleNotFoundError as error:
    if str(error.name).split(".")[0] != "ditmoe":
        raise
    raise ImportError("this pipeline needs the package ditmoe: pip install ditmoe") from error
'''
"""The only code that a folder may hold. Folders stay: who changes this must go on accepting what it was."""
PREFIX = "DiTMoE"


def known_name(kind: str) -> str:
    """The name of a component's class among the attributes of diffusers."""
    return f"{PREFIX}{kind}"


def introduce(pipeline: type, *kinds: type) -> None:
    """Add classes to the attributes of diffusers, its only registry.

    A scheduler also by its own name, unless diffusers has another of that name: `from_config` then knows which options
    of its configuration are no other scheduler's, and warns of none.
    """
    import diffusers

    own = {PIPELINE: pipeline} | {known_name(kind.__name__): kind for kind in kinds}
    plain = {kind.__name__: kind for kind in kinds if issubclass(kind, diffusers.SchedulerMixin)}
    vars(diffusers).update(
        own, **{name: kind for name, kind in plain.items() if not hasattr(diffusers, name)}
    )


def write_index(folder: Path) -> None:
    """Rewrite the index that diffusers has just written, and write `pipeline.py` beside it."""
    index: dict[str, Any] = json.loads((folder / INDEX).read_text())
    for name, value in index.items():
        if isinstance(value, list) and str(value[0]).split(".")[0] == "ditmoe":
            index[name] = ["diffusers", known_name(value[1])]
    index["_class_name"] = CLASS
    for name, text in {INDEX: json.dumps(index, indent=2, sort_keys=True) + "\n", CODE: TEXT}.items():
        with replacing(folder / name) as stream:
            stream.write(text.encode())


def is_own_code(file: Path, folder: Path) -> bool:
    """Whether a file of a folder is the `pipeline.py` that `write_index` writes, byte for byte."""
    return file == folder / CODE and file.stat().st_size == len(TEXT) and file.read_bytes() == TEXT.encode()
