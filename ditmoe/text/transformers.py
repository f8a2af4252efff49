"""Text encoders of the library transformers, T5, CLIP, Qwen and others, from a folder; none of a folder's code runs."""

import hashlib
import importlib.util
import os
from collections.abc import Callable, Mapping
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar

import torch

from ditmoe.checkpoint import digest, open_file
from ditmoe.checkpoint.fit import bounded, read_object
from ditmoe.outside import is_regular, printable, read_json
from ditmoe.text.encoder import About, Pretrained, States

INSTALL = "pip install 'ditmoe[transformers]'"
READ = ("*.safetensors", "*.json", "*.txt", "*.model")
"""Files of weights, configuration and tokenizer: the only ones that are fetched, and what the fingerprint is of."""
MOST_GROWTH = 1000
"""How many times as long a tokenizer may make a caption before it cuts it; honest ones replace a letter by a letter."""
ENCODERS = {
    "t5": "T5EncoderModel",
    "mt5": "MT5EncoderModel",
    "umt5": "UMT5EncoderModel",
    "clip": "CLIPTextModel",
    "clip_text_model": "CLIPTextModel",
    "siglip": "SiglipTextModel",
    "siglip_text_model": "SiglipTextModel",
}
"""Classes that are a text encoder and nothing else, by kind of model; of others the whole model runs."""


class Transformers(Pretrained):
    """Last states of a model of transformers, and its pooled vector, or their mean where it has none.

    Weights must be safetensors; code that a folder brings is never run (`trust_remote_code=False`).

    Args:
        path: a folder as `save_pretrained` writes it; or a name on the hub, from which it is fetched.
        limit: tokens of a caption; the rest is cut off.
        dtype: float32, bfloat16 or float16, in which it computes.
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
        """Where the files are; a name on the hub is fetched."""
        if self.path is None:
            raise ValueError(
                "conditioning.encoder.path must name the text encoder: a folder, or a name on the hub "
                "(of an exported pipeline: from_pretrained(..., text_encoder=...))"
            )
        place = Path(os.path.expanduser(os.fspath(self.path)))
        if place.is_dir():
            return place
        from huggingface_hub import snapshot_download

        try:
            return Path(snapshot_download(os.fspath(self.path), allow_patterns=list(READ)))
        except Exception as error:  # the hub fails in many ways
            reason = " ".join(str(error).split())[:200]
            raise ValueError(
                f"{printable(self.path)} is no folder, and cannot be fetched: {reason}"
            ) from error

    @cached_property
    def kind(self) -> str:
        """Of model, as its configuration says."""
        config = read_json(self.folder / "config.json")
        kind = config.get("model_type") if isinstance(config, dict) else None
        _check_plain(config, self.folder / "config.json")
        if not isinstance(kind, str):
            raise ValueError(f"{printable(self.folder / 'config.json')} must name a model_type")
        return kind

    @cached_property
    def library(self) -> Any:
        """The module transformers.

        Raises:
            ValueError: if it is not installed.
        """
        if importlib.util.find_spec("transformers") is None:
            raise ValueError(f"a text encoder of transformers needs that library: {INSTALL}")
        import transformers

        return transformers

    def describe(self) -> About:
        library, _ = self.library, self.kind
        files = sorted({file for pattern in READ for file in self.folder.glob(pattern) if is_regular(file)})
        if not any(file.suffix == ".safetensors" for file in files):
            raise ValueError(
                f"{printable(self.folder)} must hold weights as .safetensors, but there are none"
            )
        parts = [*(f"{file.name} {digest(file)}" for file in files), f"{self.limit} {self.dtype}"]
        config = _one_line(
            lambda: library.AutoConfig.from_pretrained(self.folder, **self._trusted), self.folder
        )
        config = config.get_text_config() if hasattr(config, "get_text_config") else config
        width, mark = int(config.hidden_size), hashlib.sha256("\n".join(parts).encode()).hexdigest()
        name = printable(Path(os.fspath(self.path or "")).name)
        return About(name, width, width, len(self._numbers("")), mark)

    @cached_property
    def tokenizer(self) -> Any:
        """Its tokens."""
        make = self.library.AutoTokenizer.from_pretrained
        if (
            is_regular(file := self.folder / "tokenizer.json")
            and (by := _growth(read_object(file))) > MOST_GROWTH
        ):
            raise ValueError(f"{printable(file)} must not make captions {by:.3g} times as long")
        return _one_line(lambda: make(self.folder, **self._trusted), self.folder)

    def count(self, caption: str) -> tuple[int, int]:
        numbers = _one_line(lambda: self.tokenizer(caption, verbose=False)["input_ids"], self.folder)
        unknown = self.tokenizer.unk_token_id
        return len(numbers), 0 if unknown is None else numbers.count(unknown)

    @torch.no_grad()
    def encode(self, caption: str, device: torch.device) -> States:
        numbers = torch.tensor([self._numbers(caption)], device=device)
        with torch.autocast(device.type, enabled=False):
            output = self._model(device)(input_ids=numbers, attention_mask=torch.ones_like(numbers))
        tokens, pooled = output.last_hidden_state[0], getattr(output, "pooler_output", None)
        return States.of(tokens, tokens.float().mean(0) if pooled is None else pooled[0])

    @property
    def _trusted(self) -> Mapping[str, Any]:
        return {"trust_remote_code": False, "local_files_only": True}

    def _numbers(self, caption: str) -> list[int]:
        """Of the tokens; at least one, for encoders that put none around a caption."""
        make, options = self.tokenizer, {"truncation": True, "max_length": self.limit}
        numbers = _one_line(lambda: make(caption, **options)["input_ids"], self.folder)
        ends = (self.tokenizer.eos_token_id, self.tokenizer.pad_token_id, 0)
        return numbers or [next(end for end in ends if end is not None)]

    def _model(self, device: torch.device) -> Any:
        if (model := self.__dict__.get("_loaded")) is None:
            kind = getattr(self.library, ENCODERS.get(self.kind, "AutoModel"))
            self.library.utils.logging.disable_progress_bar()
            self.library.utils.logging.set_verbosity_error()  # a table of what does not fit, beside the error
            options = {**self._trusted, "use_safetensors": True, "dtype": getattr(torch, self.dtype)}
            tensors = sum(len(open_file(file)) for file in self.folder.glob("*.safetensors"))
            with bounded(tensors):  # a billion layers are a line of its configuration
                model = _one_line(lambda: kind.from_pretrained(self.folder, **options), self.folder)
            self._loaded = model = model.eval().requires_grad_(False)
        return model.to(device)


class Pair(Pretrained):
    """Tokens of one encoder, the pooled vector of another: T5 and CLIP, as in Stable Diffusion 3 (arXiv 2403.03206).

    Args:
        tokens, pooled: make the encoders.
    """

    def __init__(self, tokens: Callable[..., Pretrained], pooled: Callable[..., Pretrained]) -> None:
        self.of_tokens, self.of_pooled = tokens(), pooled()
        super().__init__(self.of_tokens.limit)

    def at(self, path: Any) -> "Pair":
        if not isinstance(path, list | tuple) or len(path) != 2:
            raise ValueError(
                f"two encoders need a list of two places, of tokens and of the vector, got {path!r}"
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


def _one_line(make: Callable[[], Any], folder: Path) -> Any:
    """What transformers makes of a folder; it fails in many ways, and explains in paragraphs."""
    try:
        return make()
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # panics of its Rust are not among Python's own
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"{printable(folder)} cannot be opened as a text encoder: {reason}") from error


def _check_plain(config: Any, file: Path) -> None:
    """Refuse what makes transformers look for further packages: kernels of the hub, which are code, and quantisers."""
    below = [config]
    while below:
        tree = below.pop()
        if isinstance(tree, list | dict):
            below += tree.values() if isinstance(tree, dict) else tree
        for name, value in tree.items() if isinstance(tree, dict) else ():
            if (name == "quantization_config" and value is not None) or (
                "_implementation" in name and value not in (None, "eager", "sdpa")
            ):
                raise ValueError(f"{printable(file)} names code of others, refused: {printable(name)}")


def _growth(tree: Any) -> float:
    """How many times as long what a tokenizer replaces in a text, one after the other, makes it at the most."""
    growth, below = 1.0, [tree.get("normalizer") if isinstance(tree, dict) else None]
    while below:
        rule = below.pop()
        if isinstance(rule, list):
            below += rule
        elif isinstance(rule, dict):
            pattern = rule.get("pattern")
            found = pattern.get("String") if isinstance(pattern, dict) else pattern
            if isinstance(content := rule.get("content"), str):
                growth = min(
                    1e300,
                    growth * max(1.0, len(content) / max(1, len(found) if isinstance(found, str) else 1)),
                )
            below += rule.values()
    return growth
