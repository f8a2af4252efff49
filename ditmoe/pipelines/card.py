"""The README of a pipeline's folder: what the model is, how it was trained and drawn from, what it scored."""

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

A diffusion transformer of ditmoe that draws samples of kind {kind}. Opening this folder executes nothing in it.

```python
import ditmoe

pipe = ditmoe.Pipeline.from_pretrained("path/to/this/folder")  # or "user/repository", once it is on the hub
samples = pipe(label={label!r}, num_samples=4).samples
```

`diffusers.DiffusionPipeline.from_pretrained` opens it, too, after `from ditmoe import Pipeline`: the folder holds no
code, so that it needs no `trust_remote_code`, and diffusers knows the class from the installed package alone.

{facts}
"""


def write_card(
    kind: str,
    title: str,
    classes: Sequence[str],
    facts: Mapping[str, Any],
    metrics: Path | None,
    licence: str | None = None,
) -> str:
    """The text.

    Args:
        facts: what else is to be said, by name.
        metrics: metrics.json of the run, if there is one.
        licence: of the weights, as the hub abbreviates licences.
    """
    some = ", ".join(str(name)[:100] for name in classes[:20]) + (
        f", ... ({len(classes)} in all)" if len(classes) > 20 else ""
    )
    told = {
        "classes": some,
        **facts,
        "licence": licence or "of the weights not stated; the code is Apache-2.0",
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
    """A stranger's words as a page of Markdown shows them: on one line, without marks or tags that it would obey."""
    return re.sub(
        r"([\\`*\[\]<>#|!~]|(?<!\w)_|_(?!\w))", r"\\\1", html.escape(printable(text), quote=False)[:2000]
    )


def size_line(model: DiTMoE, shape: Sequence[int]) -> str:
    """Parameters in all and of one token's way, of a model on the meta device."""
    counts = count(lambda: model, shape)
    return (
        f"{counts.total / 1e6:.2f} M parameters, of which {counts.active / 1e6:.2f} M are active for a token"
    )


def metrics_line(file: Path) -> str:
    """The numbers of a metrics.json, on one line.

    Raises:
        ValueError: if it is none.
    """
    try:
        content = read_json(file)
        numbers = [f"{name} {value:.4g}" for name, value in content.items() if isinstance(value, float)]
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{file} must be what evaluate wrote: remove it, or evaluate again") from error
    return f"{', '.join(numbers)} (intervals and protocol in {file.name})"
