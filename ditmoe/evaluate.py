"""python -m ditmoe.evaluate checkpoint=... | modality=... generated=... reference=...: evaluates a set."""

from typing import TYPE_CHECKING, Any

from ditmoe.config import cli
from ditmoe.config.command_line import WORDS
from ditmoe.lazy import lazily

if TYPE_CHECKING:
    from ditmoe.inference import evaluate_checkpoint, evaluate_files

__all__ = ["evaluate_checkpoint", "evaluate_files"]
__getattr__ = lazily(__name__, {"ditmoe.inference": __all__})


def evaluate(config: dict[str, Any]) -> None:
    """Run the command.

    Raises:
        ValueError: unless given either a checkpoint, or two sets and their modality.
    """
    files = {key: config.pop(key, None) for key in ("modality", "generated", "reference", "train")}
    words = config.pop(WORDS, {})
    if config["checkpoint"] and (files["generated"] or files["train"]):
        raise ValueError("give either checkpoint=... or generated=... and reference=..., not both")
    if words and not config["checkpoint"]:
        raise ValueError(
            f"{', '.join(words)} must be left out: only what is drawn has a shape to be asked for"
        )
    if not config["checkpoint"] and not (files["generated"] and files["reference"] and files["modality"]):
        raise ValueError("give checkpoint=<run>, or modality=<name> generated=<set> reference=<set>")
    from ditmoe import inference  # torch: only after checking the options

    if config["checkpoint"]:
        sets = {"modality": files["modality"], "reference": files["reference"]}
        inference.evaluate_checkpoint(**sets, tell=True, **config, **words)
    else:
        inference.evaluate_files(**files, out=config["out"])


def main() -> None:
    """Entry point."""
    cli.run(evaluate, "evaluate", many=True, words=True)


if __name__ == "__main__":
    main()
