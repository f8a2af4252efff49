"""A BLIP of the library transformers (arXiv 2201.12086) from a folder: how surely it answers yes about a picture."""

import os
import re
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8

from ditmoe.checkpoint.transformers_folder import (
    TRUSTED,
    check_folder,
    fingerprint,
    folder_at,
    library_for,
    load_model,
    one_line,
)
from ditmoe.outside import check_number, printable, shown
from ditmoe.outside import device as own_device
from modalities.shared.clip_model import LARGEST, Preprocessing, side_pair

BLIP = "a BLIP"
MOST_PATCHES = 4096
"""Of a picture, for memory; published ones have 576."""
MOST_WORDS, MOST_TOKENS = 50, 35
"""Of a question; the rest is cut off."""


class Whole(Preprocessing):
    """How a BLIP wants pictures: all of them, stretched to its size."""

    @classmethod
    def sizes(cls, told: Mapping[str, Any]) -> dict[str, Any]:
        if told.get("do_center_crop"):
            raise ValueError(f"do_center_crop must be false, got {shown(told['do_center_crop'])}")
        return {"size": side_pair("size", told["size"]), "crop": None}


def question(phrase: str) -> str:
    """What is asked about a phrase, as BLIP's own code cleans and cuts it."""
    cleaned = re.sub(r"[.!\"()*#:;~]", "", f"{phrase}?".lower())
    return " ".join(cleaned.split(" ")[:MOST_WORDS])


class Blip:
    """A BLIP that answers questions, with its weights, preprocessing and tokenizer, on the device at hand.

    It executes nothing of the folder. Questions begin with [ENC], as in BLIP's own code; the example of transformers
    leaves [CLS] there.

    Args:
        path: a folder as `save_pretrained` writes it; or a name on the hub, from which it is fetched.

    Attributes:
        name: for reports.
        fingerprint: SHA-256 of weights, tokenizer and settings.

    Raises:
        OSError, ValueError: one line, if that is no such BLIP, or transformers is not installed.
    """

    def __init__(self, path: str | PathLike) -> None:
        library = library_for(BLIP)
        self.folder, self.name = folder_at(path), printable(Path(os.fspath(path)).name)
        self._check(check_folder(self.folder))
        self.fingerprint = fingerprint(self.folder)
        self.prepared = Whole.read(self.folder)
        self._tokenizer = self._tried(lambda: library.AutoTokenizer.from_pretrained(self.folder, **TRUSTED))
        config = self._tried(lambda: library.BlipConfig.from_pretrained(self.folder, **TRUSTED))
        side = config.vision_config.image_size
        if self.prepared.size != (side, side):
            raise ValueError(
                f"{printable(self.folder)} prepares pictures of {self.prepared.size}, but sees {side}"
            )
        words = config.text_config
        self._limit = min(MOST_TOKENS, words.max_position_embeddings)
        self._start, self._size = words.bos_token_id, words.vocab_size
        check_number(f"bos_token_id of {self._file}", self._start, 0, self._size - 2, whole=True)
        self._answers = [self._answer(word) for word in ("yes", "no")]
        if self._answers[0] == self._answers[1]:
            raise ValueError(f"the tokenizer of {printable(self.folder)} must tell yes from no")
        kind = library.BlipForQuestionAnswering
        model, _ = load_model(kind, lambda: kind(config), self.folder, BLIP)
        self._model = model.to(own_device())

    @property
    def _file(self) -> str:
        return printable(self.folder / "config.json")

    def _check(self, config: Mapping[str, Any]) -> None:
        """Refuse another model, and pictures of more patches than fit into memory."""
        if (kind := config.get("model_type")) != "blip":
            raise ValueError(f"{self._file} must have the model_type blip, got {shown(kind)}")
        within = config.get("vision_config")
        if not isinstance(within, dict):
            raise ValueError(f"{self._file} must have a vision_config, got {shown(within)}")
        side, patch = within.get("image_size", 384), within.get("patch_size", 16)
        check_number(f"image_size of {self._file}", side, 1, LARGEST, whole=True)
        check_number(f"patch_size of {self._file}", patch, 1, side, whole=True)
        if (number := (side // patch) ** 2) > MOST_PATCHES:
            raise ValueError(
                f"{self._file} must make at most {MOST_PATCHES} patches of a picture, got {number}"
            )

    @property
    def told(self) -> str:
        """What it is and how it wants pictures, for protocols."""
        height, width = self.prepared.shape(1, 1)
        return (
            f"{self.name}, SHA-256 {self.fingerprint[:32]}; {height} x {width}, PIL's filter "
            f"{self.prepared.resample}"
        )

    @torch.no_grad()
    def __call__(
        self, picture: UInt8[np.ndarray, "h w 3"], questions: Sequence[str]
    ) -> Float[np.ndarray, " Q"]:
        """P(yes) / (P(yes) + P(no)) of each question, by the first token of its answer.

        Each is asked alone: there is no padding on which it could depend.
        """
        asked = [self._tokens(one) for one in questions]
        x = self.prepared(picture)[None].to(self._model.device)
        with torch.autocast(x.device.type, enabled=False):
            found = self._tried(lambda: self._logits(x, asked))
        if not found.isfinite().all():
            raise ValueError(f"{printable(self.folder)} gives numbers that are not finite")
        yes, no = found.double().unbind(-1)
        return (yes - no).sigmoid().cpu().numpy()

    def _logits(self, x: torch.Tensor, questions: Sequence[Sequence[int]]) -> Float[torch.Tensor, "Q 2"]:
        seen, rows = self._model.vision_model(pixel_values=x)[0], []
        for tokens in questions:
            ids = torch.tensor([tokens], device=x.device)
            states = self._model.text_encoder(input_ids=ids, encoder_hidden_states=seen)[0]
            start = torch.full((1, 1), self._start, device=x.device)
            out = self._model.text_decoder(input_ids=start, encoder_hidden_states=states, use_cache=False)
            rows.append(out.logits[0, 0, self._answers])
        return torch.stack(rows).float()

    def _tokens(self, words: str) -> list[int]:
        options = {"truncation": True, "max_length": self._limit}
        tokens = self._tried(lambda: self._tokenizer(words, **options)["input_ids"])
        if not 1 < len(tokens) <= self._limit or not 0 <= min(tokens) <= max(tokens) < self._size:
            raise ValueError(
                f"the tokenizer of {printable(self.folder)} must make 2 to {self._limit} tokens below {self._size} of "
                f"a question, got {str(tokens)[-60:]}"
            )
        return [self._start + 1, *tokens[1:]]  # [ENC], which was added behind [DEC]

    def _answer(self, word: str) -> int:
        """The token of a word between those that begin and end a text."""
        if len(tokens := self._tokens(word)) != 3:
            raise ValueError(
                f"the tokenizer of {printable(self.folder)} must make one token of {word!r}, between two of its own"
            )
        return tokens[1]

    def _tried(self, make: Any) -> Any:
        return one_line(make, self.folder, BLIP)
