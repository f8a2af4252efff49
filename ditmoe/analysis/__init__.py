"""Expert analysis of a trained model: routing records, tests against chance, ablations and pictures."""

from ditmoe.analysis.command import analyze_checkpoint
from ditmoe.analysis.dropping import dropped
from ditmoe.analysis.record import noted, take_record

__all__ = ["analyze_checkpoint", "dropped", "noted", "take_record"]
