"""Measurements of speed and of quality."""

from argparse import ArgumentParser, RawDescriptionHelpFormatter


def options_of(doc: str | None) -> ArgumentParser:
    """The parser of a benchmark's command line, whose help is the benchmark's own docstring as it stands."""
    return ArgumentParser(description=doc, formatter_class=RawDescriptionHelpFormatter)
