"""A CLIP of the library transformers (arXiv 2103.00020) from a folder: pictures and captions as unit vectors."""

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from ditmoe.checkpoint.transformers_folder import (
    TRUSTED,
    check_folder,
    fingerprint,
    folder_at,
    library_for,
    load_model,
    one_line,
)
from ditmoe.outside import check_number, is_regular, printable, read_object, shown
from ditmoe.outside import device as own_device

CLIP = "a CLIP"
LARGEST = 2048
"""Most pixels of a side of what a CLIP sees."""
LONGEST = 100
"""Times as long as wide, of a picture that is resized by its shorter side."""
Vectors = Float[np.ndarray, "S W"]


@dataclass(frozen=True)
class Preprocessing:
    """How a model wants pictures, as the settings beside it say (`preprocessor_config.json`); here a CLIP.

    Attributes:
        size: (height, width) that a picture is resized to; or the length of its shorter side, which keeps proportions.
        crop: (height, width) of the middle that is kept; None keeps all.
        resample: PIL's number of the filter, 3 is bicubic.
        scale: multiplies bytes.
        mean, std: of each colour, after that.
    """

    FILTER: ClassVar[int] = 3
    """Of a processor that does not say one."""
    size: int | tuple[int, int]
    crop: tuple[int, int] | None
    resample: int
    scale: float
    mean: Sequence[float]
    std: Sequence[float]

    @classmethod
    def read(cls, folder: Path) -> "Preprocessing":
        """Of a folder that a processor or an image processor was saved to.

        Raises:
            OSError, ValueError: one line, for what is missing, unknown or absurd.
        """
        file, whole = folder / "preprocessor_config.json", folder / "processor_config.json"
        if is_regular(file) or not is_regular(whole):
            told: Any = read_object(file)
        else:  # as a processor of transformers 5 is saved
            told = read_object(whole).get("image_processor")
        try:
            for step in ("do_resize", "do_rescale", "do_normalize"):
                if told.get(step, True) is not True:
                    raise ValueError(f"{step} must be true, got {shown(told[step])}")
            sizes = cls.sizes(told)
            check_number("resample", resample := told.get("resample", cls.FILTER), 0, 5, whole=True)
            check_number("rescale_factor", scale := told.get("rescale_factor", 1 / 255), above=0)
            mean, std = (_colours(name, told[name]) for name in ("image_mean", "image_std"))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            reason = f"it lacks {error}" if isinstance(error, KeyError) else error
            raise ValueError(
                f"{printable(file)} must say how pictures are prepared: {printable(reason)}"
            ) from error
        return cls(**sizes, resample=resample, scale=scale, mean=mean, std=std)

    @classmethod
    def sizes(cls, told: Mapping[str, Any]) -> dict[str, Any]:
        """The fields about size, of the settings.

        Raises:
            KeyError, TypeError, ValueError: for what is missing or absurd.
        """
        crop = side_pair("crop_size", told["crop_size"]) if told.get("do_center_crop", True) else None
        size = told["size"]
        if isinstance(size, Mapping) and "shortest_edge" in size:
            size = size["shortest_edge"]
        if isinstance(size, int):
            check_number("size", size, 1, LARGEST, whole=True)
        else:
            size = side_pair("size", size)
        return {"size": size, "crop": crop}

    def shape(self, height: int, width: int) -> tuple[int, int]:
        """What a picture is resized to.

        Raises:
            ValueError: if it is so long that all of it would take gigabytes.
        """
        if not isinstance(self.size, int):
            return self.size
        short = min(height, width)
        if max(height, width) > LONGEST * short:
            raise ValueError(
                f"a picture that is scored must be at most {LONGEST} times as long as wide, got {height} x {width}"
            )
        return int(self.size * height / short), int(self.size * width / short)

    def __call__(self, picture: UInt8[np.ndarray, "h w 3"]) -> Float[Tensor, "3 H W"]:
        """Resized, cropped and normalised."""
        height, width = self.shape(*picture.shape[:2])
        image = Image.fromarray(picture).resize((width, height), Image.Resampling(self.resample))
        if self.crop is not None:
            top, left = (height - self.crop[0]) // 2, (width - self.crop[1]) // 2
            image = image.crop(
                (left, top, left + self.crop[1], top + self.crop[0])
            )  # black beyond the border
        x = torch.from_numpy(np.asarray(image, np.float32)) * self.scale
        return ((x - torch.tensor(self.mean)) / torch.tensor(self.std)).movedim(-1, 0)


class Clip:
    """A CLIP with its weights, preprocessing and tokenizer, on the device at hand; it executes nothing of the folder.

    Args:
        path: a folder as `save_pretrained` writes it; or a name on the hub, from which it is fetched.

    Attributes:
        name: for reports.
        fingerprint: SHA-256 of weights, tokenizer and settings.
        side: pixels of a side of what it sees.
        limit: tokens of a caption; the rest is cut off.

    Raises:
        OSError, ValueError: one line, if that is no CLIP, or transformers is not installed.
    """

    def __init__(self, path: str | PathLike) -> None:
        library = library_for(CLIP)
        self.folder, self.name = folder_at(path), printable(Path(os.fspath(path)).name)
        kind = check_folder(self.folder).get("model_type")
        if kind != "clip":
            raise ValueError(
                f"{printable(self.folder / 'config.json')} must have the model_type clip, got {shown(kind)}"
            )
        self.fingerprint = fingerprint(self.folder)
        self.prepared = Preprocessing.read(self.folder)
        tokenizer = library.AutoTokenizer.from_pretrained
        self._tokenizer = self._tried(lambda: tokenizer(self.folder, **TRUSTED))
        config = self._tried(lambda: library.CLIPConfig.from_pretrained(self.folder, **TRUSTED))
        model, _ = load_model(library.CLIPModel, lambda: library.CLIPModel(config), self.folder, CLIP)
        self._model = model.to(own_device())
        self.side, self.limit = config.vision_config.image_size, config.text_config.max_position_embeddings
        seen = self.prepared.crop or self.prepared.size
        if seen != (self.side, self.side):
            raise ValueError(f"{printable(self.folder)} prepares pictures of {seen}, but sees {self.side}")

    @torch.no_grad()
    def of_pictures(self, pictures: Iterable[UInt8[np.ndarray, "_ _ 3"]], batch: int = 32) -> Vectors:
        """A vector of length 1 for each picture."""
        left, parts = iter(pictures), [np.zeros((0, self._model.config.projection_dim), np.float32)]
        while some := [self.prepared(picture) for picture in islice(left, batch)]:
            parts.append(self._embedded(self._model.get_image_features, torch.stack(some)))
        return np.concatenate(parts)

    @torch.no_grad()
    def of_captions(self, captions: Sequence[str], batch: int = 32) -> Vectors:
        """A vector of length 1 for each caption, cut behind `limit` tokens.

        Captions of one length go together: there is no padding on which a vector could depend.
        """
        told = [self._tokens(caption) for caption in captions]
        found = np.zeros((len(told), self._model.config.projection_dim), np.float32)
        for length in sorted(set(map(len, told))):
            alike = [row for row, tokens in enumerate(told) if len(tokens) == length]
            for rows in (alike[first : first + batch] for first in range(0, len(alike), batch)):
                x = torch.tensor([told[row] for row in rows])
                found[rows] = self._embedded(self._model.get_text_features, x)
        return found

    def is_cut(self, caption: str) -> bool:
        """Whether a caption has more tokens than `limit`."""
        return len(self._tried(lambda: self._tokenizer(caption, verbose=False)["input_ids"])) > self.limit

    def _tokens(self, caption: str) -> list[int]:
        options = {"truncation": True, "max_length": self.limit}
        tokens = self._tried(lambda: self._tokenizer(caption, **options)["input_ids"])
        config, end = self._model.config.text_config, self._tokenizer.eos_token_id
        if not 0 < len(tokens) <= self.limit or max(tokens) >= config.vocab_size or tokens[-1] != end:
            raise ValueError(
                f"the tokenizer of {printable(self.folder)} must make 1 to {self.limit} tokens below "
                f"{config.vocab_size} of a caption, the last {end}, got {str(tokens)[-60:]}"
            )
        return tokens

    def _embedded(self, make: Callable[[Tensor], Any], x: Tensor) -> Vectors:
        device = self._model.logit_scale.device
        with torch.autocast(device.type, enabled=False):
            found = self._tried(lambda: make(x.to(device)))
        vectors = F.normalize(getattr(found, "pooler_output", found).float(), dim=-1).cpu().numpy()
        if not np.isfinite(vectors).all():
            raise ValueError(f"{printable(self.folder)} gives numbers that are not finite")
        return vectors

    def _tried(self, make: Callable[[], Any]) -> Any:
        return one_line(make, self.folder, CLIP)


def side_pair(name: str, value: Any) -> tuple[int, int]:
    """(height, width), stated as such or as one number for both."""
    sides = [value["height"], value["width"]] if isinstance(value, Mapping) else [value, value]
    for side in sides:
        check_number(name, side, 1, LARGEST, whole=True)
    return sides[0], sides[1]


def _colours(name: str, value: Any) -> list[float]:
    if not isinstance(value, list) or len(value) != 3:
        raise ValueError(f"{name} must be three numbers, got {shown(value)}")
    for number in value:
        check_number(name, number, above=0 if name == "image_std" else -math.inf)
    return value
