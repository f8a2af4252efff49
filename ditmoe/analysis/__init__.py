"""What the experts of a trained model do: recorded, counted against chance, left out, drawn."""

from ditmoe.analysis.command import analyze_checkpoint
from ditmoe.analysis.dropping import dropped
from ditmoe.analysis.record import Record, noted, take_record

__all__ = ["Record", "analyze_checkpoint", "dropped", "noted", "take_record"]
