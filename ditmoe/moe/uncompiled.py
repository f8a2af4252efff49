"""What torch.compile leaves to Python. A file of its own, since the mark alone loads the compiler, for a second."""

import torch

from ditmoe.moe import experts

on_cpu = torch.compiler.disable(experts.on_cpu)
"""The experts one after the other: as many slices as the batch says, so each batch would be compiled anew."""
