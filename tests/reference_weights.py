"""Names of DiT's, DiT-MoE's and DiT-3D's state dicts, told in ours; for tests against the goldens."""

import re

import numpy as np
import torch

RENAME = [
    (r"^x_embedder\.proj", "embed"),
    (r"^t_embedder\.mlp\.0", "timestep.first"),
    (r"^t_embedder\.mlp\.2", "timestep.second"),
    (r"^y_embedder\.embedding_table", "label.table"),
    (r"adaLN_modulation\.1", "modulation.linear"),
    (r"^final_layer", "final"),
    (r"attn\.(qkv|Wqkv)", "attention.qkv"),
    (r"attn\.(proj|out_proj)", "attention.out"),
    (r"attn\.([qk]_norm)", r"attention.\1"),
    (r"mlp\.fc1", "feed_forward.up"),
    (r"mlp\.fc2", "feed_forward.down"),
    (r"moe\.gate\.weight", "feed_forward.router.weight"),
    (r"moe\.shared_experts\.down_proj", "feed_forward.shared.down"),
]


def translate(golden: np.lib.npyio.NpzFile) -> dict[str, torch.Tensor]:
    """The golden's weights under our names: patches channels last, gate and up fused, experts stacked."""
    source = {k[3:]: torch.tensor(golden[k]) for k in golden.files if k.startswith("w::")}
    out: dict[str, torch.Tensor] = {}
    for key, value in source.items():
        if key == "pos_embed" or "gate_proj" in key or "up_proj" in key or ".experts." in key:
            continue
        for pattern, replacement in RENAME:
            key = re.sub(pattern, replacement, key)
        if key == "embed.weight":  # a convolution (D, C, *patch) becomes a matrix over cells, then channels
            value = value.movedim(1, -1).flatten(1)
        out[key] = value
    for block in sorted({k.split(".")[1] for k in source if ".moe." in k}):
        old, new = f"blocks.{block}.moe", f"blocks.{block}.feed_forward"
        out[f"{new}.shared.up.weight"] = torch.cat(
            [source[f"{old}.shared_experts.{m}_proj.weight"] for m in ("gate", "up")]
        )
        num = len(source[f"{old}.gate.weight"])

        def stack(name: str, old: str = old, num: int = num) -> torch.Tensor:
            return torch.stack([source[f"{old}.experts.{e}.{name}_proj.weight"] for e in range(num)])

        out[f"{new}.experts.up"] = torch.cat([stack("gate"), stack("up")], dim=1)
        out[f"{new}.experts.down"] = stack("down")
    return out
