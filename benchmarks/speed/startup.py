"""Cost of a start, relative to `import torch`: python -m benchmarks.speed.startup [--rounds 5]

Each row is an interpreter of its own, interleaved with the others, in processor time: compare the ratios. Mistakes and
help should cost little more than Hydra; valid commands should load what they use and nothing else.
"""

import resource
import subprocess
import sys
from collections.abc import Callable
from functools import partial

import torch

from benchmarks import options_of
from benchmarks.speed.timing import interleaved, table

BASE = "import torch"
COMMANDS = {
    "train --help": ["train", "--help"],
    "train nonsense=1": ["train", "nonsense=1"],
    "sample --help": ["sample", "--help"],
    "plan --help": ["plan", "--help"],
    "sample checkpoint=missing": ["sample", "checkpoint=missing"],
    "export checkpoint=missing": ["export", "checkpoint=missing", "out=missing"],
    "evaluate generated=missing": ["evaluate", "generated=missing"],
    "prepare nonsense=1": ["prepare", "nonsense=1"],
    "view missing.ply": ["view", "missing.ply"],
    "plan model=xl": ["plan", "model=xl"],
}


def start(*words: str) -> None:
    """One interpreter, from its start to its end, whatever it answers."""
    subprocess.run([sys.executable, *words], capture_output=True)


def variants() -> dict[str, Callable[[], None]]:
    """What is compared, by its name in the table."""
    imports = [BASE, "import ditmoe", "import torch, hydra", "import diffusers"]
    found = {code: partial(start, "-c", code) for code in imports}
    return found | {
        name: partial(start, "-m", f"ditmoe.{first}", *rest) for name, (first, *rest) in COMMANDS.items()
    }


def of_children(device: torch.device) -> float:
    """Seconds of the processor that ended child processes took."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    """Entry point."""
    parser = options_of(__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    seconds = interleaved(variants(), options.rounds, torch.device("cpu"), of_children)
    print("\n".join(table(seconds, BASE)))


if __name__ == "__main__":
    main()
