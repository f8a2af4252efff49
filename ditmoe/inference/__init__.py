"""Inference with a trained model: sampling and evaluation."""

from ditmoe.inference.drawing import draw, draw_from, sample_checkpoint
from ditmoe.inference.measuring import evaluate_checkpoint, evaluate_files, publish, table
from ditmoe.inference.model_words import ModelWords
from ditmoe.inference.request import ask, understand
from ditmoe.inference.writing import write_drawn

__all__ = [
    "ModelWords",
    "ask",
    "draw",
    "draw_from",
    "evaluate_checkpoint",
    "evaluate_files",
    "publish",
    "sample_checkpoint",
    "table",
    "understand",
    "write_drawn",
]
