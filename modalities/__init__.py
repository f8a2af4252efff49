"""Thin adapters: each turns one kind of data into tokens and back, measures it and shows it."""
