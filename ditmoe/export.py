"""python -m ditmoe.export checkpoint=RUN out=FOLDER: writes a pipeline of diffusers, see `ditmoe.Pipeline`."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from hydra import compose
from omegaconf import OmegaConf

from ditmoe import build, checkpoint, cli, weights
from ditmoe.pipeline import Memory, Pipeline, Transformer, check_folder
from ditmoe.sampler import make_scheduler

CARD = """---
library_name: diffusers
tags: [ditmoe, diffusion, mixture-of-experts, {name}]
---

# {title}

A model of {name}s of [ditmoe](https://github.com/ditmoe/ditmoe): {size}.

```python
import ditmoe

pipe = ditmoe.Pipeline.from_pretrained(".")
samples = pipe(label={label!r}, num_samples=4).samples
```

{facts}
"""


def export(
    source: str | Path,
    out: str | Path,
    *,
    autoencoder: str | None = None,
    scheduler: Mapping[str, Any] | None = None,
    max_shard_size: str = "5GB",
) -> str:
    """Write a pipeline's folder whole or not at all; returns one line that says what it is.

    Args:
        source: a run's folder or checkpoint, or a folder that convert wrote.
        out: new, or one that export wrote.
        autoencoder: of a converted model: a folder or a name on the hub, saved along; None gives latents.
        scheduler: a configuration; None is the run's, or what fits a converted model.
        max_shard_size: of the files of weights, as diffusers writes sizes.

    Raises:
        FileNotFoundError, ValueError: one line.
    """
    out = Path(out).absolute()
    check_replaceable(out)
    if (Path(source) / weights.CONFIG).is_file():
        pipeline, card = of_converted(Path(source), autoencoder, scheduler)
    elif autoencoder is not None:
        raise ValueError("autoencoder is for converted models: a run has its own")
    else:
        pipeline, card = of_run(Path(source), scheduler)
    out.parent.mkdir(parents=True, exist_ok=True)
    draft = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        pipeline.save_pretrained(draft, max_shard_size=max_shard_size)
        (draft / "README.md").write_text(card)
        for file in draft.rglob("*.safetensors"):
            file.chmod((draft / "README.md").stat().st_mode)  # they come for their owner alone
        metrics = Path(source) / "metrics.json"
        if metrics.is_file():
            shutil.copy(metrics, draft / "metrics.json")
        weights.replace(out, draft)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    parts = ", ".join(name for name, part in pipeline.components.items() if part is not None)
    return f"{out}: {parts}"


def of_run(source: Path, scheduler: Mapping[str, Any] | None) -> tuple[Pipeline, str]:
    """The pipeline of a run, with its averaged weights, and its card."""
    content = checkpoint.load(source)
    config, facts = content["config"], content["facts"]
    build.check_trusted(config, source)
    plain = {name: value for name, value in facts.items() if name != "codec"}
    parts = {name: config[name] for name in ("model", "router", "modality")}
    transformer = Transformer(config=parts, facts=plain)
    build.load_weights(transformer.net, content["ema"], source)
    modality = build.make_modality(config, facts)
    memory = remember(
        {name: config[name] for name in ("modality", "process", "sampling")},
        plain,
        facts.get("codec", {}),
        modality.sample_shape,
        modality.classes,
    )
    steps = make_scheduler(build.make(scheduler or config["scheduler"]), build.make(config["process"]))
    pipeline = Pipeline(transformer.eval(), steps, memory, modality.autoencoder)
    facts_told = {
        "classes": ", ".join(modality.classes[:20]) + (", ..." if len(modality.classes) > 20 else ""),
        "training": f"{content['step']} steps of {config['trainer']['batch_size'] * config['trainer']['accumulate']}",
        "process": f"{config['process']['_target_'].rpartition('.')[2]}, {config['process']['prediction']}",
        "sampling": f"{config['sampling']['steps']} steps, guidance {config['sampling']['guidance']}",
    }
    return pipeline, card(transformer, modality.name, config["name"], modality.classes[0], facts_told)


def of_converted(
    source: Path, autoencoder: str | None, scheduler: Mapping[str, Any] | None
) -> tuple[Pipeline, str]:
    """The pipeline of published weights; flow matching where they saw t in [0, 1], DDPM elsewhere."""
    config, _ = weights.read(source)
    model = weights.load(source, device="cpu")
    transformer = Transformer(config={k: config[k] for k in ("model", "tokens", "router", "num_classes")})
    transformer.net.load_state_dict(model.state_dict())
    flow = config["model"].get("time_scale", 1.0) != 1.0
    sections, facts, vae = converted_sections(config, autoencoder, flow)
    process = build.make(sections["process"])
    chosen = build.make(scheduler or sections.pop("scheduler"))
    sections.pop("scheduler", None)
    classes = facts.get("classes") or [str(i) for i in range(config["num_classes"])]
    memory = remember(sections, facts, {}, facts["shape"], classes)
    pipeline = Pipeline(transformer.eval(), make_scheduler(chosen, process), memory, vae)
    told = {"converted from": config.get("found", "published weights"), "process": type(process).__name__}
    return pipeline, card(transformer, "image", source.name, classes[0], told)


def converted_sections(
    config: dict[str, Any], autoencoder: str | None, flow: bool
) -> tuple[dict[str, Any], dict[str, Any], Any]:
    """Process, scheduler and sampling of published weights; with an autoencoder the modality too, and its facts."""
    tokens, size = config["tokens"], config.get("size")
    if not tokens["_target_"].endswith(".LatentTokens"):
        raise ValueError("only converted models of images can be exported: clouds are exported from runs")
    if size is None:
        raise ValueError(
            "the converted model must know the size of its samples: convert it again with size=..."
        )
    words = ["process=flow_matching", "process.prediction=velocity", "scheduler=flow_euler"] if flow else [
        "process=ddpm", "scheduler=dpmpp"
    ]  # fmt: skip
    words += [
        "modality=image",
        "codec@modality.codec=autoencoder",
        f"modality.codec.path={autoencoder or 'none'}",
    ]
    composed: Any = OmegaConf.to_container(compose_train(words), resolve=True)
    channels = tokens["channels"]
    shape = [channels, size, size]
    sections = {name: composed[name] for name in ("process", "scheduler")}
    sections["sampling"] = {"steps": 50, "guidance": 4.0}
    if autoencoder is None:
        return sections, {"shape": shape}, None
    modality = build.make_modality(composed)
    stride = modality.codec.stride  # type: ignore[attr-defined]
    if modality.codec.channels != channels:  # type: ignore[attr-defined]
        raise ValueError(
            f"autoencoder must have the {channels} latent channels of the model, got {modality.codec.channels}"  # type: ignore[attr-defined]
        )
    section = composed["modality"] | {"size": [size * stride[0], size * stride[1]]}
    section["tokens"] |= {"patch": tokens.get("patch", 2)}
    section["codec"] = {"_target_": section["codec"]["_target_"], "_partial_": True, "path": "vae"}
    facts = {"classes": [str(i) for i in range(config["num_classes"])], "shape": shape}
    return sections | {"modality": section}, facts, modality.autoencoder


def compose_train(words: list[str]) -> Any:
    """The training configuration with these words."""
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    if GlobalHydra.instance().is_initialized():
        return compose("train", overrides=words)
    with initialize_config_dir(str(cli.config_folder()), version_base="1.3"):
        return compose("train", overrides=words)


def remember(
    config: dict[str, Any],
    facts: dict[str, Any],
    tensors: Mapping[str, torch.Tensor],
    shape: Any,
    classes: Any,
) -> Memory:
    """The memory of a pipeline."""
    shapes = {name: list(value.shape) for name, value in tensors.items()}
    memory = Memory(config=config, facts=facts, tensors=shapes, shape=list(shape), classes=list(classes))
    for index, name in enumerate(memory.names):
        getattr(memory, f"fact{index}").copy_(tensors[name])
    return memory


def card(transformer: Transformer, name: str, title: str, label: str, facts: Mapping[str, str]) -> str:
    """The README of a pipeline's folder."""
    size = f"{sum(p.numel() for p in transformer.parameters()) / 1e6:.2f} M parameters"
    lines = "\n".join(f"- {key}: {value}" for key, value in facts.items())
    return CARD.format(name=name, title=title, size=size, label=label, facts=lines)


def check_replaceable(out: Path) -> None:
    """Raises ValueError unless the folder is new, empty, or one that export wrote."""
    if (out.is_dir() and not any(out.iterdir())) or not out.exists():
        return
    try:
        check_folder(out)
    except (ValueError, OSError) as error:
        raise ValueError(
            f"out must be new, or a folder that export wrote, but {out} holds something else"
        ) from error


def command(config: dict[str, Any]) -> None:
    """The command."""
    source = config.pop("checkpoint")
    print(export(source, config.pop("out"), **config))
    print("in Python: pipe = ditmoe.Pipeline.from_pretrained(...)")


def main() -> None:
    """Entry point."""
    cli.run(command, "export")


if __name__ == "__main__":
    main()
