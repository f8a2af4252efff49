"""Metrics of image sets, and the feature extractors they use."""
