"""Training on a shared machine: python -m benchmarks.speed.contention [--rounds 5] [--seconds 8]

Samples per second of the default run with one thread, with all, and with as many as other processes leave
(`ditmoe.distributed.threads`), interleaved; alone, and beside one and two busy processes. Each turn starts with three
seconds that are not counted, in which the number of threads adapts to the load. Nothing else should run.
"""

import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from benchmarks import options_of

_SETTLING = 3.0
_WAYS = {"one thread": "1", "all threads": str(os.cpu_count()), "as many as others leave": ""}


def serve(words: list[str]) -> None:
    """A process that trains for as many seconds as it is told on a line, and answers with samples a second."""
    from ditmoe.config import build
    from ditmoe.config.compose import composed
    from ditmoe.distributed.threads import share_cores
    from ditmoe.train import make_trainer

    config = composed("train", words)
    with TemporaryDirectory() as folder:
        trainer = make_trainer(config, build.make_modality(config), Path(folder))

    def train(seconds: float) -> float:
        start, steps = time.perf_counter(), 0
        while time.perf_counter() - start < seconds:
            trainer._train_step()
            trainer.step, steps = trainer.step + 1, steps + 1
            share_cores()
        return trainer.options.batch_size * steps / (time.perf_counter() - start)

    train(0.1)
    print("ready", flush=True)
    for line in sys.stdin:
        train(_SETTLING)
        print(train(float(line)), flush=True)


def main() -> None:
    if "--serve" in sys.argv:
        return serve(sys.argv[sys.argv.index("--serve") + 1 :])
    parser = options_of(__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=8)
    options = parser.parse_args()
    servers, busy = {}, []
    try:
        for name, threads in _WAYS.items():
            environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
            environment |= {"OMP_NUM_THREADS": threads} if threads else {}
            line = [sys.executable, "-m", "benchmarks.speed.contention", "--serve"]
            servers[name] = subprocess.Popen(
                line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
                env=environment, start_new_session=True,
            )  # fmt: skip
            while (said := servers[name].stdout.readline().strip()) != "ready":
                if not said and servers[name].poll() is not None:
                    raise SystemExit(f"training with {name} ended")
        print(f"| | {' | '.join(_WAYS)} |\n{'|---' * (len(_WAYS) + 1)}|")
        for others in range(3):
            rates: dict[str, list[float]] = {name: [] for name in _WAYS}
            for _ in range(options.rounds):
                for name, server in servers.items():
                    server.stdin.write(f"{options.seconds}\n")
                    server.stdin.flush()
                    rates[name].append(float(server.stdout.readline()))
            cells = [f"{median(v):.1f} ({min(v):.1f} .. {max(v):.1f})" for v in rates.values()]
            print(f"| beside {others} | {' | '.join(cells)} |", flush=True)
            busy.append(subprocess.Popen([sys.executable, "-c", "while True: pass"], start_new_session=True))
    finally:
        for process in [*servers.values(), *busy]:
            process.kill()


if __name__ == "__main__":
    main()
