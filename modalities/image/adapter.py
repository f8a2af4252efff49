"""The image modality: implements the `Modality` interface with the modules of this folder."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from itertools import islice
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ditmoe.conditioning import Condition
from ditmoe.given import Parts
from ditmoe.modality import Asked, Reader, Report, Samples, Shown, Tokens, check_options
from ditmoe.outside import printable, real_path
from modalities.image import given as given_parts
from modalities.image import view
from modalities.image.codec import Autoencoder
from modalities.image.data import Pictures, pictures
from modalities.image.data.dataset import turn
from modalities.image.data.listing import Picture, labels_of
from modalities.image.data.native_pictures import PackedPictures
from modalities.image.data.picture_sets import ReferenceFile, read_set
from modalities.image.metrics import compbench, geneval_score
from modalities.image.metrics.evaluation import evaluate_images
from modalities.image.metrics.features import make as make_extractor
from modalities.image.metrics.warnings import about_compression
from modalities.latent import Codec, LatentModality, Packing, latent_cache
from modalities.latent.adapter import check_size
from modalities.latent.codec import to_pixels
from modalities.latent.latent_shards import Source
from modalities.latent.latent_writer import prepare as write_latents
from modalities.latent.packing import encode_all, native_size
from modalities.shared import clip_score, enlarged, lay_out, save_png
from modalities.shared.captions import all_of, asked_of
from modalities.shared.datasets import Noted
from modalities.shared.understood import check_enough

FITTED_ON = 2048
"""Number of training images that a codec without published weights is fitted to."""


class Image(LatentModality):
    """Images, generated as the latents of a codec.

    Args:
        data: makes the data set (`Pictures`), given a size; called on first use of the data.
        codec: makes the codec between pixels and latents.
        tokens: makes the patchifier, given a width and a number of channels.
        size: (H, W) in pixels.
        latents: a folder written by `prepare`; training then neither reads nor encodes images.
        native: train at native sizes and proportions; images larger than the area of `size` are shrunk to it.
        budget: with `native`, the most tokens of a packed row.
        rows: with `native`, packed rows in a batch, over all processes.
        evaluation: options of `evaluate_images`, and "clip": the CLIP of `clip_score`,
            "geneval" and "detector": those of `geneval_score`; "compbench" and "vqa": those of `compbench`.
        preparation: options of `latent_writer.prepare`.
        data_facts: class names, latent shape and fitted codec, from a checkpoint; None takes them from the data.
        captions: condition on captions as well as classes.
    """

    name: ClassVar[str] = "image"
    words: ClassVar[Mapping[str, str]] = {"size": "[height, width] in pixels"}
    given_files = ("mask",)
    given_words, given_per = given_parts.WORDS, {"token": 1.0}
    suffixes: ClassVar[tuple[str, ...]] = pictures.SUFFIXES
    opens: ClassVar[Sequence[str]] = (
        "latents",
        "evaluation.cache",
        "evaluation.weights",
        "evaluation.clip",
        "evaluation.geneval",
        "evaluation.detector",
        "evaluation.compbench",
        "evaluation.vqa",
    )
    published, autoencoders = Autoencoder, Autoencoder.known
    decoded_at_once = 32
    arrays = ("arr_0", "arr_1")  # the names that ADM's evaluator reads

    def __init__(
        self,
        data: Callable[..., Pictures],
        codec: Callable[[], Codec],
        tokens: Callable[..., Tokens],
        size: Sequence[int] = (32, 32),
        latents: str | PathLike | None = None,
        native: bool = False,
        budget: int = 1024,
        rows: int = 1,
        evaluation: Mapping[str, Any] | None = None,
        preparation: Mapping[str, Any] | None = None,
        data_facts: Mapping[str, Any] | None = None,
        captions: bool = False,
    ) -> None:
        super().__init__(codec, tokens, size, latents, native, budget, rows, data_facts, captions)
        self._make_data = data
        self._evaluation, self._preparation = dict(evaluation or {}), dict(preparation or {})
        self._clip = clip_score.option(self._evaluation)
        self._geneval = geneval_score.option(self._evaluation)
        self._compbench = compbench.option(self._evaluation)
        check_options("modality.evaluation", evaluate_images, self._evaluation)
        check_options("modality.preparation", write_latents, self._preparation)

    @property
    def pixel_size(self) -> tuple[int, ...]:
        return self.size

    @cached_property
    def data(self) -> Pictures:
        """The data set; listed on first use.

        Raises:
            ValueError: if training uses latents on disk and `data.root` does not say where their images are.
        """
        data = self._make_data(size=self.size, **({"captions": True} if self.captions else {}))
        if data.root is None and self.cached is not None:
            raise self.cached.without_root()
        return data

    def setting(self) -> dict[str, Any]:
        return {"size": list(self.size)}

    def picker(self, record: Mapping[str, Any]) -> latent_cache.Pick:
        return partial(turn, mirror=bool(record.get("mirror")))

    def class_names(self) -> list[str]:
        return list((self.cached or self.data).classes)

    def shape_of(self, size: Sequence[int] | None = None) -> tuple[int, ...]:  # type: ignore[override]
        if size is None:
            return self.sample_shape
        check_size(size)
        shape = self.codec.shape(size)
        self.check_whole_tokens(size)
        return shape

    @property
    def even_reader(self) -> Reader:
        if self.cached is not None:
            return Reader(self.cached.batch, lambda found: found)
        reading = Noted(self.data.batch, [self.data.unreadable])

        def encoded(found: Any) -> tuple[Tensor, Asked]:
            images, labels = reading.told(found)
            return self.encode(images).cpu(), asked_of(labels)

        return Reader(reading, encoded, files=self.data.root is not None)

    @property
    def packed_reader(self) -> Reader:
        reading = Noted(PackedPictures(self.data, *self.packing), [self.data.unreadable])

        def encoded(found: Any) -> tuple[list[Tensor], Asked]:
            images, labels = reading.told(found)
            return encode_all(images, self.encode), asked_of(labels)

        return Reader(reading, encoded, files=self.data.root is not None)

    @cached_property
    def packing(self) -> tuple[Packing, list[tuple[Picture, tuple[int, int]]]]:
        """Which images share a row, and the readable training images, each with the size it is resized to."""
        unit = self.unit
        area = self.size[0] * self.size[1]
        kept = [(p, native_size(size, unit, area)) for p, size in self.data.own_sizes()]
        packing = Packing([h * w // (unit[0] * unit[1]) for _, (h, w) in kept], self.budget)
        print(f"{len(kept)} pictures at {len({s for _, s in kept})} sizes, {packing.told()}")
        return packing, kept

    def batch_names(self, size: int, seed: int, step: int, rank: int = 0, world: int = 1) -> list[str]:
        if self.cached:
            return []
        if not self.rows:
            return self.data.batch_names(size, seed, step, rank, world)
        packing, pictures = self.packing
        rows = range(step * self.rows, (step + 1) * self.rows)
        return [pictures[n % len(pictures)][0].name for row in rows for n in packing.row(seed, row)]

    def understood(self) -> str:
        """A summary of how the data was interpreted, in a few lines."""
        found = str((self.cached or self.data).understood())
        return "\n".join(filter(None, [found, "" if self.cached else self.captions_understood()]))

    def reference(self, split: str) -> Samples:
        return self.data.reference(split)

    def check_prompts(self, prompts: Sequence[str] | None) -> None:
        geneval_score.opened(self._geneval, prompts, clip_score.opened(self._clip, prompts))
        compbench.opened(self._compbench, prompts)

    def check_evaluation(self, split: str = "test") -> None:
        clip = clip_score.check_training(self._clip, self.captions)
        check_enough(self.data.count(split), split, "pictures")
        if self._geneval is not None or self._compbench is not None:
            pictures = self.data.split(split) if self.captions else ()
            prompts = [self.data.captioner.first(each) for each in pictures]
            geneval_score.opened(self._geneval, prompts, clip)
            compbench.opened(self._compbench, prompts)
        chosen = self._evaluation
        make_extractor(
            chosen.get("features", "pixels"),
            chosen.get("protocol", "adm"),
            chosen.get("weights"),
            chosen.get("device"),
        )

    def evaluate(self, generated: Samples, reference: Samples, train: Samples | None = None) -> Report:
        prompts = clip_score.prompts_of(generated)
        clip = clip_score.opened(self._clip, prompts)
        judge = geneval_score.opened(self._geneval, prompts, clip)
        binding = compbench.opened(self._compbench, prompts)
        against = reference.file if isinstance(reference, ReferenceFile) else reference
        report = about_compression(
            evaluate_images(generated, against, train, **self._evaluation), generated, reference
        )
        report = clip_score.added(
            report, clip, generated, reference, lambda picture: [picture], "one of each"
        )
        return compbench.added(geneval_score.added(report, judge, generated), binding, generated)

    def read(self, path: Path) -> Samples:
        """Read a folder of images of one size, an .npz with arr_0 (uint8), or one with ADM's statistics."""
        files = (each.file for each in (self._geneval, self._compbench) if each is not None)
        asking = next(files, self._clip)
        return clip_score.with_prompts(asking, read_set(path), path)

    def write_each(self, samples: Samples, folder: Path) -> list[Path]:
        """Write a PNG per image."""
        each = zip(samples.data, samples.file_names(), strict=True)
        return [save_png(folder / f"{name}.png", image) for image, name in each]

    def save_picture(self, samples: Samples, file: Path) -> None:
        """Save a contact sheet of the first 200 images, small ones enlarged."""
        tiles = [enlarged(image) for image in samples.data[:200]]
        save_png(file, lay_out(tiles, self.labels_of(samples, 200)))

    @classmethod
    def view(cls, paths: Sequence[Path], out: Path | None = None) -> str:
        return view.view(paths, out)

    @classmethod
    def show(cls, files: Sequence[Path]) -> Shown:
        return view.show_one(files[0])

    def prepare(self, source: Path, out: Path, check: bool = False) -> None:
        """Encode the training images below `source` once, for `modality.latents=`."""
        if check:
            raise ValueError("check is for videos: leave it out")
        data = self.data
        data.root = source
        pictures = data.split("train")
        print(data.understood())
        setting = {
            "source": printable(real_path(source)),
            **self.setting(),
            "mirror": data.mirror,
            "max_pixels": data.max_pixels,
        }
        setting |= {} if data.damaged == "refuse" else {"damaged": data.damaged}
        found = Source(
            "picture",
            names=[picture.name for picture in pictures],
            asked=self._asked(pictures),
            classes=data.classes,
            read=lambda numbers: data.views([pictures[i] for i in numbers]),
            unreadable=data.unreadable,
            origin=lambda number: pictures[number].origin(),
        )
        self.write_latents(found, out, setting, self._preparation)

    def _asked(self, pictures: Sequence[Picture]) -> Condition:
        """The conditions of images; with `captions`, all captions of each."""
        labels = np.array(labels_of(pictures), np.int64)
        if not self.captions:
            return Condition.of_labels(torch.from_numpy(labels), len(self.data.classes))
        return all_of(labels, map(self.data.captioner.of, pictures))

    def parts(  # type: ignore[override]
        self,
        given: Any,
        *,
        shape: Mapping[str, Any],
        told: bool,
        strength: float | None = None,
        mask: Any = None,
    ) -> Parts:
        """Inpaint an image under a mask, outpaint it to a larger size, or regenerate it from noise at a strength."""
        return given_parts.parts(self, given, shape, strength, mask)

    def fitting_data(self) -> Iterator[Float[Tensor, "B 3 H W"]]:
        rng = np.random.default_rng(0)
        train = self.data.split("train")
        read = (self.data.read(train[i]) for i in rng.permutation(len(train)))
        images = islice((image for image in read if image is not None), FITTED_ON)
        num = 0
        while some := list(islice(images, 256)):
            num += len(some)
            yield to_pixels(np.stack(some))
        if not num:
            raise ValueError(f"{printable(self.data.root)} must hold readable pictures, got none")
