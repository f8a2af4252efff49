"""The processes of a run, and its threads."""
