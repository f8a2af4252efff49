"""The README of a pipeline's folder: what the model is, how it was trained and drawn from, what it scored."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ditmoe.counting import count
from ditmoe.model import DiTMoE

CARD = """---
library_name: diffusers
tags: [ditmoe, diffusion, mixture-of-experts, {kind}]
{front}---

# {title}

A diffusion transformer of ditmoe that draws samples of kind {kind}. Opening this folder executes nothing in it.

```python
import ditmoe

pipe = ditmoe.Pipeline.from_pretrained("path/to/this/folder")
samples = pipe(label={label!r}, num_samples=4).samples
```

{facts}
"""


def write_card(
    kind: str,
    title: str,
    classes: Sequence[str],
    facts: Mapping[str, Any],
    metrics: Path,
    licence: str | None = None,
) -> str:
    """The text.

    Args:
        facts: what else is to be said, by name.
        metrics: metrics.json of the run, if there is one.
        licence: of the weights, as the hub abbreviates licences.
    """
    some = ", ".join(classes[:20]) + (f", ... ({len(classes)} in all)" if len(classes) > 20 else "")
    told = {
        "classes": some,
        **facts,
        "licence": licence or "of the weights not stated; the code is Apache-2.0",
    }
    if metrics.is_file():
        told["metrics"] = metrics_line(metrics)
    return CARD.format(
        kind=kind,
        title=title,
        label=classes[0],
        front=f"license: {licence}\n" if licence else "",
        facts="\n".join(f"- {name}: {value}" for name, value in told.items()),
    )


def size_line(make: Callable[[], DiTMoE], shape: Sequence[int]) -> str:
    """Parameters in all and of one token's way."""
    counts = count(make, shape)
    return (
        f"{counts.total / 1e6:.2f} M parameters, of which {counts.active / 1e6:.2f} M are active for a token"
    )


def metrics_line(file: Path) -> str:
    """The numbers of a metrics.json, on one line.

    Raises:
        ValueError: if it is none.
    """
    try:
        content = json.loads(file.read_text())
        numbers = [f"{name} {value:.4g}" for name, value in content.items() if isinstance(value, float)]
    except (ValueError, AttributeError, RecursionError) as error:
        raise ValueError(f"{file} must be what evaluate wrote: remove it, or evaluate again") from error
    return f"{', '.join(numbers)} (intervals and protocol in {file.name})"
