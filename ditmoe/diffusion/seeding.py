"""Each random draw is seeded by an address, so that resuming needs no RNG state and sample 17 is always the same."""

import zlib

import numpy as np
import torch


def _words(purpose: str, address: tuple[int, ...]) -> list[int]:
    if any(part < 0 for part in address):
        raise ValueError(f"seed must not be negative, got {min(address)}")
    return [zlib.crc32(purpose.encode()), *address]


def torch_generator(purpose: str, *address: int) -> torch.Generator:
    """A CPU generator for one purpose ("noise", "dropout", ...) at one address (seed, rank, step, ...)."""
    seed = np.random.SeedSequence(_words(purpose, address)).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(seed >> np.uint64(1)))
