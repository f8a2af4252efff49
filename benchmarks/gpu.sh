#!/bin/sh
# Ten minutes with a GPU: sh benchmarks/gpu.sh [--out gpu.md] [--cpu-smoke]; it ends within eight, with one page.
cd "$(dirname "$0")/.." && exec "${PYTHON:-python}" -m benchmarks.gpu "$@"
