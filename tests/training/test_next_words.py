"""The command that a run suggests at its end opens what the run needs."""

from pathlib import Path

from ditmoe.config.compose import composed
from ditmoe.finishing import next_words

AUTOENCODER = ["codec@modality.codec=autoencoder", "modality.codec.path=my vae/"]


def test_the_next_command_trusts_the_autoencoder_and_nothing_else() -> None:
    mine = ["modality=image", "modality.data.root=pictures/", "modality.latents=latents/"]
    assert next_words(composed("train", mine), Path("run")) == "label=0"
    assert next_words(composed("train", [*mine, *AUTOENCODER]), Path("run")) == "label=0 'trust=my vae/'"
