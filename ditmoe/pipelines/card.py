"""The model card (README) of a pipeline's folder: model, training, sampling and metrics."""

import html
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ditmoe.cost import count
from ditmoe.model import DiTMoE
from ditmoe.outside import is_regular, printable, read_json

CARD = """---
library_name: diffusers
tags: [ditmoe, diffusion, mixture-of-experts, {kind}]
{front}---

# {title}

A ditmoe diffusion transformer that generates samples of kind {kind}. ditmoe executes nothing in this folder.

```python
import ditmoe  # pip install ditmoe

pipe = ditmoe.Pipeline.from_pretrained("path/to/this/folder")  # or "user/repository", once it is on the hub
samples = pipe(label={label!r}, num_samples=4).samples
```

diffusers opens it by itself, too: `DiffusionPipeline.from_pretrained(..., trust_remote_code=True)` runs `pipeline.py`,
which imports the installed package ditmoe.

{facts}
"""

LICENCE = r"[A-Za-z][A-Za-z0-9.+-]{0,63}"
"""Pattern of the hub's identifiers of licences."""


def write_card(
    kind: str,
    title: str,
    classes: Sequence[str],
    facts: Mapping[str, Any],
    metrics: Path | None,
    licence: str | None = None,
) -> str:
    """The text of the model card.

    Args:
        facts: further lines, by name.
        metrics: metrics.json of the run; None: none.
        licence: of the weights, as an identifier of the hub.
    """
    some = ", ".join(str(name)[:100] for name in classes[:20]) + (
        f", ... ({len(classes)} in all)" if len(classes) > 20 else ""
    )
    told = {
        "classes": some,
        **facts,
        "licence": licence or "not stated for the weights; the code is Apache-2.0",
    }
    if metrics is not None and is_regular(metrics):
        told["metrics"] = metrics_line(metrics)
    return CARD.format(
        kind=kind,
        title=plain_text(title),
        label=classes[0] if re.fullmatch(r"[\w -]+", classes[0]) else 0,
        front=f"license: {licence}\n" if licence else "",
        facts="\n".join(f"- {name}: {plain_text(value)}" for name, value in told.items()),
    )


def plain_text(text: Any) -> str:
    """Untrusted text for a Markdown page: on one line, with all markup escaped."""
    return re.sub(
        r"([\\`*\[\]<>#|!~]|(?<!\w)_|_(?!\w))", r"\\\1", html.escape(printable(text), quote=False)[:2000]
    )


def size_line(model: DiTMoE, shape: Sequence[int]) -> str:
    """Total and active parameters of a model on the meta device."""
    counts = count(lambda: model, shape)
    return (
        f"{counts.total / 1e6:.2f} M parameters, of which {counts.active / 1e6:.2f} M are active for a token"
    )


def metrics_line(file: Path) -> str:
    """The numbers of a metrics.json, on one line.

    Raises:
        ValueError: if the file is not one that `evaluate` wrote.
    """
    try:
        content = read_json(file)
        numbers = [f"{name} {value:.4g}" for name, value in content.items() if isinstance(value, float)]
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{file} must be what evaluate wrote: remove it, or evaluate again") from error
    return f"{', '.join(numbers)} (intervals and protocol in {file.name})"
