"""Modality adapters: each converts one kind of data to tokens and back, evaluates samples and displays them."""
