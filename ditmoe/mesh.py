"""python -m ditmoe.mesh source=samples/ out=meshes/: writes closed surfaces of point clouds, as GLB and OBJ."""

import os
import sys
from pathlib import Path
from typing import Any

from ditmoe.config import cli
from ditmoe.outside import check_number, tell


def mesh(config: dict[str, Any]) -> None:
    """Run the command of the modality."""
    from ditmoe.checkpoint import check_holds_no_link, exists
    from ditmoe.checkpoint.alone import alone_in
    from ditmoe.config import build  # torch: only after checking the options
    from ditmoe.modality import Surfaces

    check_number("num", config["num"], 1, whole=True)
    modality = Surfaces.of(build.make_whole(config["modality"]), "mesh")
    source, out = (Path(config[name]) for name in ("source", "out"))
    if exists(source) or os.path.lexists(
        source / "log.jsonl"
    ):  # a run may be a stranger's: its links are not followed
        check_holds_no_link(source)
    with alone_in(out):
        paths = modality.mesh(source, out, config["turntable"], config["num"])
    tell(paths[0], sys.stdout)


def main() -> None:
    """Entry point."""
    cli.run(mesh, "mesh")


if __name__ == "__main__":
    main()
