"""Metrics of sets of clouds, with confidence intervals."""
