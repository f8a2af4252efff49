"""python -m ditmoe.convert source=FILE out=FOLDER: published weights of DiT, DiT-MoE and DiT-3D become ours.

The folder is opened by `ditmoe.load(FOLDER)`.
"""

from typing import Any

from ditmoe.config import cli


def convert(config: dict[str, Any]) -> None:
    """The command."""
    from ditmoe.pretrained import convert_file  # torch, which a mistake in the words should not wait for

    print(convert_file(**config))
    print(f'wrote {config["out"]}; in Python: model = ditmoe.load("{config["out"]}")')


def main() -> None:
    """Entry point."""
    cli.run(convert, "convert")


if __name__ == "__main__":
    main()
