"""Rendering of clouds, to images or in windows."""
