"""Text encoders of the library transformers (T5, CLIP, Qwen and others) from a folder, whose code is not run."""

import hashlib
import os
from collections.abc import Callable
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar

import torch

from ditmoe.checkpoint.transformers_folder import (
    ENCODER,
    TRUSTED,
    check_folder,
    fingerprint,
    folder_at,
    library_for,
    load_model,
    one_line,
)
from ditmoe.outside import printable, shown
from ditmoe.text.encoder import WIDEST, About, Pretrained, States

ENCODERS = {
    "t5": "T5EncoderModel",
    "mt5": "MT5EncoderModel",
    "umt5": "UMT5EncoderModel",
    "clip": "CLIPTextModel",
    "clip_text_model": "CLIPTextModel",
    "siglip": "SiglipTextModel",
    "siglip_text_model": "SiglipTextModel",
}
"""Classes of pure text encoders by model type; of other types, the complete model runs."""


class Transformers(Pretrained):
    """The last hidden states of a transformers model, and its pooled vector, or the mean of the states without one.

    Weights must be safetensors; code in a folder is never run (`trust_remote_code=False`).

    Args:
        path: a folder as written by `save_pretrained`, or a hub name, which is downloaded.
        limit: most tokens of a caption; the rest is cut off.
        dtype: of the computation: float32, bfloat16 or float16.
    """

    opens: ClassVar[tuple[str, ...]] = ("path",)

    def __init__(self, path: str | PathLike | None = None, limit: int = 128, dtype: str = "float32") -> None:
        super().__init__(limit)
        if dtype not in ("float32", "bfloat16", "float16"):
            raise ValueError(f"dtype must be float32, bfloat16 or float16, got {dtype!r}")
        self.path, self.dtype = path, dtype

    def at(self, path: Any) -> "Transformers":
        return Transformers(path, self.limit, self.dtype)

    @cached_property
    def folder(self) -> Path:
        """The folder of the files; a hub name is downloaded."""
        if self.path is None:
            raise ValueError(
                "conditioning.encoder.path must name the text encoder: a folder, or a name on the hub "
                "(of an exported pipeline: from_pretrained(..., text_encoder=...))"
            )
        return folder_at(self.path)

    @cached_property
    def kind(self) -> str:
        """The model type in the folder's configuration."""
        kind = check_folder(self.folder).get("model_type")
        if not isinstance(kind, str):
            raise ValueError(f"{printable(self.folder / 'config.json')} must name a model_type")
        return kind

    @cached_property
    def library(self) -> Any:
        """The module transformers."""
        return library_for(ENCODER)

    def describe(self) -> About:
        library, _ = self.library, self.kind
        mark = fingerprint(self.folder, [f"{self.limit} {self.dtype}"])
        config = one_line(lambda: library.AutoConfig.from_pretrained(self.folder, **TRUSTED), self.folder)
        config = config.get_text_config() if hasattr(config, "get_text_config") else config
        width = getattr(config, "hidden_size", None)
        if type(width) is not int or not 1 <= width <= WIDEST:
            raise ValueError(
                f"{printable(self.folder / 'config.json')} must say a hidden_size between 1 and {WIDEST}, got "
                f"{shown(width)}"
            )
        name = printable(Path(os.fspath(self.path or "")).name)
        return About(name, width, width, len(self._numbers("")), mark)

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer of the folder."""
        check_folder(self.folder)
        make = self.library.AutoTokenizer.from_pretrained
        return one_line(lambda: make(self.folder, **TRUSTED), self.folder)

    def count(self, caption: str) -> tuple[int, int]:
        numbers = one_line(lambda: self.tokenizer(caption, verbose=False)["input_ids"], self.folder)
        unknown = one_line(lambda: self.tokenizer.unk_token_id, self.folder)
        return len(numbers), 0 if unknown is None else numbers.count(unknown)

    @torch.no_grad()
    def encode(self, caption: str, device: torch.device) -> States:
        model, found = self._model(device), self._numbers(caption)
        if (most := one_line(lambda: model.get_input_embeddings().num_embeddings, self.folder)) <= max(found):
            raise ValueError(
                f"{printable(self.folder)} has {most} embeddings, but a token of number {max(found)}"
            )
        numbers = torch.tensor([found], device=device)
        with torch.autocast(device.type, enabled=False):
            output = one_line(
                lambda: model(input_ids=numbers, attention_mask=torch.ones_like(numbers)), self.folder
            )
        tokens, pooled = output.last_hidden_state[0], getattr(output, "pooler_output", None)
        pooled = pooled if self._pools else None
        return States.of(tokens, tokens.float().mean(0) if pooled is None else pooled[0])

    def _numbers(self, caption: str) -> list[int]:
        """Indices of a caption's tokens; at least one, even for tokenizers without special tokens."""
        make, options = self.tokenizer, {"truncation": True, "max_length": self.limit}
        numbers = one_line(lambda: make(caption, **options)["input_ids"], self.folder)
        if len(numbers) > self.limit:
            raise ValueError(
                f"{printable(self.folder)} makes {len(numbers)} tokens of a caption, above limit={self.limit}"
            )
        tokenizer = self.tokenizer
        ends = one_line(lambda: (tokenizer.eos_token_id, tokenizer.pad_token_id, 0), self.folder)
        return numbers or [next(end for end in ends if end is not None)]

    def _model(self, device: torch.device) -> Any:
        if (model := self.__dict__.get("_loaded")) is None:
            kind = getattr(self.library, ENCODERS.get(self.kind, "AutoModel"))
            dtype = getattr(torch, self.dtype)
            model, unpooled = load_model(kind, lambda: self._blank(kind), self.folder, dtype=dtype)
            self._loaded, self._pools = model, not unpooled
        return model.to(device)

    def _blank(self, kind: Any) -> Any:
        """A randomly initialised model from the folder's configuration."""
        if kind is self.library.AutoModel:
            return kind.from_config(self.library.AutoConfig.from_pretrained(self.folder, **TRUSTED))
        return kind(kind.config_class.from_pretrained(self.folder, **TRUSTED))


class Pair(Pretrained):
    """Token states of one encoder and the pooled vector of another: T5 and CLIP, as in Stable Diffusion 3.

    arXiv 2403.03206.

    Args:
        tokens, pooled: factories of the encoders.
    """

    def __init__(self, tokens: Callable[..., Pretrained], pooled: Callable[..., Pretrained]) -> None:
        self.of_tokens, self.of_pooled = tokens(), pooled()
        super().__init__(self.of_tokens.limit)

    def at(self, path: Any) -> "Pair":
        if not isinstance(path, list | tuple) or len(path) != 2:
            raise ValueError(
                f"the path of a pair must be a list of two, for the tokens and for the pooled vector, got {path!r}"
            )
        tokens, pooled = self.of_tokens.at(path[0]), self.of_pooled.at(path[1])
        return Pair(lambda: tokens, lambda: pooled)

    def describe(self) -> About:
        tokens, pooled = self.of_tokens.about, self.of_pooled.about
        mark = hashlib.sha256(f"{tokens.fingerprint} {pooled.fingerprint}".encode()).hexdigest()
        return About(f"{tokens.name} and {pooled.name}", tokens.width, pooled.pooled, tokens.empty, mark)

    def encode(self, caption: str, device: torch.device) -> States:
        tokens, pooled = (each.encode(caption, device) for each in (self.of_tokens, self.of_pooled))
        return States(tokens.tokens, pooled.pooled)

    def count(self, caption: str) -> tuple[int, int]:
        return self.of_tokens.count(caption)
