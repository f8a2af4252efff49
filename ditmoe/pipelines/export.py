"""Export of a run, or of converted weights, to the folder of a diffusers pipeline (`ditmoe.Pipeline`)."""

import re
import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ditmoe import checkpoint
from ditmoe.checkpoint import manifest
from ditmoe.checkpoint.atomic import check_writable, recover, replacing_folder, writing
from ditmoe.checkpoint.fit import bounded
from ditmoe.config import build
from ditmoe.config.compose import composed
from ditmoe.config.facts import described
from ditmoe.config.known_classes import find
from ditmoe.config.plain_values import LARGEST
from ditmoe.config.restore import (
    adapters,
    admitted,
    averaged,
    load_weights,
    make_checked,
    materialise,
    scale_of,
)
from ditmoe.config.trust import Trust
from ditmoe.diffusion import Sampling, make_scheduler
from ditmoe.modality import PublishedAutoencoder
from ditmoe.outside import check_number, is_regular, printable
from ditmoe.pipelines.card import LICENCE, size_line, write_card
from ditmoe.pipelines.lora_files import file_state
from ditmoe.pipelines.trusted_folder import check_replaceable, without_paths
from ditmoe.pretrained import weights

if TYPE_CHECKING:  # importing diffusers takes seconds; errors in the arguments should come before that
    import ditmoe.pipelines.components
    import ditmoe.pipelines.pipeline

METRICS = "metrics.json"
TRANSFORMER = ("model", "router", "conditioning")
"""Sections of a configuration that define a model, besides those of its samples."""
COUNTED = ("batch_size", "accumulate")
"""Options of the trainer whose product is the batch size in the model card."""
CONVERTED = ("modality=image", "codec@modality.codec=autoencoder", "modality.codec.path=null")
"""Overrides of the training configuration for pipelines of converted weights."""


def export(
    source: str | Path,
    out: str | Path,
    *,
    autoencoder: str | None = None,
    scheduler: Mapping[str, Any] | None = None,
    max_shard_size: str = "5GB",
    licence: str | None = None,
    lora: str = "merge",
    trust: Trust = False,
) -> str:
    """Write a pipeline's folder completely or not at all; returns one line that names the folder and its components.

    Args:
        source: a run's folder or checkpoint, or a folder that `convert` wrote.
        out: a new folder, or one that `export` wrote.
        autoencoder: for a converted model: a folder or a name on the hub, saved with it; None: the pipeline returns
            latents.
        scheduler: a configuration section; None: the run's, or a default for a converted model.
        max_shard_size: of weight files, in diffusers' notation.
        licence: of the weights, for the model card.
        lora: for a run that trained LoRA: "merge" it into the weights, or "keep" it in a separate file.
        trust: paths and hub names that the checkpoint may open, see `ditmoe.config.trust`.

    Raises:
        FileNotFoundError, ValueError: with a message of one line.
    """
    if lora not in ("merge", "keep"):
        raise ValueError(f"lora must be merge or keep, got {lora!r}")
    if not re.fullmatch(r"\d+(\.\d+)? ?[KMGT]B", str(max_shard_size), re.IGNORECASE):
        raise ValueError(
            f"max_shard_size must be a size such as 5GB or 500MB, got {printable(max_shard_size)}"
        )
    if licence is not None and not re.fullmatch(LICENCE, licence):  # it goes into the card's YAML
        raise ValueError(
            f"licence must be an identifier of the hub such as apache-2.0 or other, got {printable(licence)[:80]}"
        )
    source, out = Path(source), Path(out).absolute()
    recover(source)
    recover(out)
    check_replaceable(out)
    check_writable(out, folder=True)
    if is_regular(source / weights.CONFIG):
        pipeline, told = of_converted(source, autoencoder, scheduler)
        metrics = source / METRICS
    elif autoencoder is not None:
        raise ValueError("autoencoder must be left out: a run has its own")
    else:
        pipeline, told, metrics = checkpoint.unless_dropped(
            source, lambda: _of_newest(source, scheduler, trust, lora)
        )
    # A link could expose a file from outside the run.
    measured = is_regular(metrics) and not metrics.is_symlink()
    card = write_card(**told, metrics=metrics if measured else None, licence=licence)
    with replacing_folder(out) as draft:
        with writing(out):
            pipeline.save_pretrained(draft, max_shard_size=max_shard_size)
        (draft / "README.md").write_text(card)
        if measured:
            shutil.copy(metrics, draft / METRICS)
    parts = ", ".join(name for name, part in pipeline.components.items() if part is not None)
    return f"{out}: {parts}"


def opened(source: str | Path, trust: Trust = False) -> "ditmoe.pipelines.Pipeline":
    """The pipeline of a run's newest checkpoint, as `export` writes it, in memory alone.

    Raises:
        FileNotFoundError, ValueError: with a message of one line.
    """
    source = Path(source)
    recover(source)
    return checkpoint.unless_dropped(source, lambda: _of_newest(source, None, trust, "merge"))[0]


def _of_newest(source: Path, *options: Any) -> tuple["ditmoe.pipelines.Pipeline", dict[str, Any], Path]:
    """As `of_run`, of the newest checkpoint of a run, and where its metrics are."""
    found = checkpoint.find(source, parts=("ema", "facts"))
    with build.describing(found.path):
        return *of_run(found, *options), found.run / METRICS


def of_run(
    found: checkpoint.Checkpoint,
    scheduler: Mapping[str, Any] | None,
    trust: Trust = False,
    lora: str = "merge",
) -> tuple["ditmoe.pipelines.Pipeline", dict[str, Any]]:
    """The pipeline of a run, with its averaged weights, and the arguments of its model card."""
    from ditmoe.pipelines import Pipeline, Transformer

    config, data_facts = admitted(found, trust, "trainer")
    sampling = Sampling.of(config)
    for name in COUNTED:
        check_number(f"trainer.{name} of {found.path}", config["trainer"].get(name), 1, LARGEST, whole=True)
    modality, process = build.make_modality(config, data_facts), build.make_whole(config["process"])
    without_lora, added = adapters(found)
    tensors = averaged(found) if lora == "merge" else without_lora
    # Tokens need the codec, which must not be created on the meta device below.
    modality.tokens(config["model"]["hidden_size"])
    plain, kinds = described(data_facts)
    kept = without_paths({name: config[name] for name in (*TRANSFORMER, "modality", "process", "sampling")})
    own = {name: kept[name] for name in (*TRANSFORMER, "modality")}
    make = partial(Transformer, config=own, data_facts=plain, tensors=kinds)
    transformer = make_checked(make, config, modality, tensors, found.path, trust)
    size = size_line(transformer.net, modality.sample_shape)
    transformer = materialise(transformer, make, "cpu")
    load_weights(transformer.net, tensors, found.path)
    parts = {name: kept[name] for name in ("modality", "process", "sampling")} | {"given": config["given"]}
    memory = remember(parts, data_facts, modality.sample_shape, modality.classes)
    steps = make_scheduler(build.make(scheduler or config["scheduler"]), process)
    trainer = config["trainer"]
    told = {
        "size": size,
        "training": f"{found.plain['step']} steps of {trainer['batch_size'] * trainer['accumulate']} samples",
        "process": f"{type(process).__name__}, prediction {process.prediction}",
        "sampling": f"{sampling.steps} steps of {type(steps).__name__}, guidance {sampling.guidance}",
    }
    title = str(found.part("config").get("name"))
    card = {"kind": modality.name, "title": title, "classes": list(modality.classes), "facts": told}
    vae = modality.autoencoder if isinstance(modality, PublishedAutoencoder) else None
    pipe = Pipeline(transformer.eval(), steps, memory, vae)
    if lora == "keep":
        if not added:
            raise ValueError(f"lora=keep needs a run that trained LoRA, got {found.path}")
        pipe.load_lora_weights(file_state(added, scale_of(found)))
    return pipe, card


def of_converted(
    source: Path, autoencoder: str | None, scheduler: Mapping[str, Any] | None
) -> tuple["ditmoe.pipelines.Pipeline", dict[str, Any]]:
    """The pipeline of converted weights: flow matching if they were trained with t in [0, 1], else DDPM."""
    from ditmoe.pipelines import Pipeline, Transformer

    config, tensors = weights.read(source)
    make = partial(
        Transformer, config={name: config[name] for name in (*TRANSFORMER, "tokens", "num_classes")}
    )
    with torch.device("meta"), bounded(len(tensors)):
        transformer = make()
    flow = weights.is_flow(config)
    kind, sections, data_facts, vae = converted_sections(config, autoencoder, flow)
    size = size_line(transformer.net, data_facts["shape"])
    transformer = materialise(transformer, make, "cpu")
    load_weights(transformer.net, tensors, source)
    steps = build.make(scheduler or sections["scheduler"])
    classes = data_facts.get("classes") or [str(i) for i in range(config["num_classes"])]
    kept = without_paths({name: v for name, v in sections.items() if name != "scheduler"})
    memory = remember(kept, data_facts, data_facts["shape"], classes)
    process, sampling = build.make_whole(sections["process"]), sections["sampling"]
    steps = make_scheduler(steps, process)
    told = {
        "converted from": config.get("found", "published weights"),
        "size": size,
        "process": f"{type(process).__name__}, prediction {sections['process']['prediction']}",
        "sampling": f"{sampling['steps']} steps of {type(steps).__name__}, guidance {sampling['guidance']}",
    }
    card = {"kind": kind, "title": source.absolute().name, "classes": classes, "facts": told}
    return Pipeline(transformer.eval(), steps, memory, vae), card


def converted_sections(
    config: dict[str, Any], autoencoder: str | None, flow: bool
) -> tuple[str, dict[str, Any], dict[str, Any], Any]:
    """The modality's name, the configuration, the data facts and the autoencoder for converted weights.

    The configuration has the sections process, scheduler and sampling, and modality if there is an autoencoder.

    Raises:
        ValueError: if the weights are not those of images, or do not fit the autoencoder.
    """
    tokens, size = config["tokens"], config.get("size")
    words = ["process=flow_matching", "process.prediction=velocity", "scheduler=flow_euler"] if flow else [
        "process=ddpm", "scheduler=dpmpp"
    ]  # fmt: skip
    train = composed("train", [*words, *CONVERTED])
    kind = find(train["modality"]["_target_"]).name
    if tokens["_target_"] != train["modality"]["tokens"]["_target_"]:
        raise ValueError(f"only converted models of {kind}s can be exported: others are exported from runs")
    if size is None:
        raise ValueError(
            "the converted model must record the size of its samples: convert it again with size=..."
        )
    channels = tokens.get("channels")
    for name, value in {"size": size, "tokens.channels": channels}.items():
        check_number(f"{name} of the converted model", value, 1, LARGEST, whole=True)
    shape = [channels, size, size]
    sections = {name: train[name] for name in ("process", "scheduler")}
    sections["sampling"] = {"steps": 50, "guidance": 4.0}
    if autoencoder is None:
        return kind, sections, {"shape": shape}, None
    train["modality"]["codec"]["path"] = autoencoder  # not by an override: it may contain a comma or a space
    codec: Any = build.make_modality(train).codec  # type: ignore[attr-defined]
    if codec.channels != channels:
        raise ValueError(
            f"autoencoder must have the {channels} latent channels of the model, got {codec.channels}"
        )
    section = train["modality"] | {"size": [size * codec.stride[0], size * codec.stride[1]]}
    section["tokens"] |= {"patch": tokens.get("patch", 2)}
    data_facts = {"classes": [str(i) for i in range(config["num_classes"])], "shape": shape, "codec": {}}
    return kind, sections | {"modality": section}, data_facts, codec.model


def remember(
    config: dict[str, Any], data_facts: dict[str, Any], shape: Any, classes: Any
) -> "ditmoe.pipelines.Memory":
    """The `Memory` component of a pipeline."""
    from ditmoe.pipelines import Memory

    plain, kinds = described(data_facts)
    memory = Memory(config=config, data_facts=plain, tensors=kinds, shape=list(shape), classes=list(classes))
    tensors = manifest.split(data_facts)[1]
    for index, name in enumerate(memory.names):
        getattr(memory, f"fact{index}").copy_(tensors[name])
    return memory
