"""Metrics of video sets: video features, motion, reconstruction, memorisation."""
