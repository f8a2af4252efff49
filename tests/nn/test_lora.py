"""LoRA: nothing at birth, the same merged, weights that stay; on linear layers and stacked experts."""

import pytest
import torch
from torch import nn

from ditmoe.nn import LoRA, lora
from tests.training.test_trainer import trainer


class Stack(nn.Module):
    """Experts, as far as LoRA knows them."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.randn(3, 5, 4))
        self.up_bias = nn.Parameter(torch.zeros(3, 5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.einsum("eoi,bi->beo", self.up, x) + self.up_bias


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention, self.experts, self.conditioning = nn.Linear(4, 4), Stack(), nn.Embedding(3, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.experts(self.attention(x + self.conditioning.weight[0]))


def test_it_is_nothing_at_birth_and_the_same_when_merged() -> None:
    net, x = Net(), torch.randn(2, 4)
    before, names = net(x), set(net.state_dict())
    LoRA(rank=2, alpha=4).attach(net, torch.Generator().manual_seed(0))
    assert torch.equal(net(x), before)
    learning = {name for name, value in net.named_parameters() if value.requires_grad}
    assert all(name.startswith("conditioning") or ".lora_" in name for name in learning)
    assert len(learning) == 1 + 2 * 2
    for _, _, _, lows in lora.adapted(net):
        assert lows[0].scale == 2
        nn.init.normal_(lows[0].lora_B)
    changed = net(x)
    assert not torch.allclose(changed, before)
    plain, added = lora.split(net.state_dict())
    assert plain.keys() == names
    assert added["experts.up"][0].shape == (3, 2, 4)
    lora.remove(net, merge=True)
    assert set(net.state_dict()) == names
    assert torch.allclose(net(x), changed, atol=1e-6)
    assert torch.allclose(
        net.experts.up, plain["experts.up"] + 2 * added["experts.up"][1] @ added["experts.up"][0]
    )


def test_words_that_fit_nothing_are_one_line() -> None:
    for options, line in (
        (
            {"rank": 1, "targets": ["attn"]},
            r"lora.targets must name matrices of this model \(attention, .*'attn'",
        ),
        ({"rank": -1}, "lora.rank must"),
        ({"rank": 1, "alpha": 0}, "lora.alpha must"),
        ({"rank": 1, "targets": "attention"}, "lora.targets must be a list"),
        ({"rank": 1, "targets": []}, "lora.targets must name at least one matrix to adapt, got none"),
    ):
        with pytest.raises(ValueError, match=rf"^[^\n]*{line}[^\n]*$"):
            LoRA(**options).attach(Net())


def test_an_edited_run_is_one_line(tmp_path) -> None:
    """A weight, an A or a B twice, of which one would be taken in silence; a rank that gives another scale; NaN."""
    from ditmoe import checkpoint
    from ditmoe.checkpoint import in_memory
    from ditmoe.config.restore import adapters
    from ditmoe.pretrained import weights

    learnt, _ = trainer(tmp_path / "base", "trainer.steps=1")
    learnt.run()
    learnt, _ = trainer(tmp_path / "run", f"init={tmp_path / 'base'}", "lora.rank=2", "trainer.steps=1")
    learnt.run()
    found = checkpoint.find(tmp_path / "run")
    tensors = found.tensors["ema"]
    place = "blocks.0.attention.qkv"
    down = f"{place}.parametrizations.weight.0.lora_A"
    for name, line in (
        (f"{place}.weight", f"{place}.weight is there twice"),
        (down.replace(".0.lora", ".1.lora"), f"{place}.weight is there twice, as lora_A"),
    ):
        tensors[name] = tensors[down]
        with pytest.raises(ValueError, match=rf"^[^\n]* is damaged: {line}$"):
            adapters(found)
        del tensors[name]
    spoilt = {name: in_memory(value) for name, value in tensors.items()}
    spoilt[down] = torch.full_like(spoilt[down], torch.nan)
    checkpoint.save(tmp_path / "spoilt", 1, {"ema": spoilt, "config": found.part("config"), "facts": {}})
    with pytest.raises(ValueError, match=rf"^[^\n]* not finite: {place}.weight$"):
        weights.read(tmp_path / "spoilt")
    for rank in (0, 3, 4096):
        found.plain["config"]["lora"]["rank"] = rank
        with pytest.raises(ValueError, match=rf"^[^\n]* must have the rank of lora.rank, {rank}, got 2$"):
            adapters(found)


def test_a_run_learns_it_alone_resumes_and_is_drawn_from(tmp_path) -> None:
    from ditmoe import checkpoint
    from ditmoe.config.restore import restore
    from ditmoe.training.resume import resume

    with pytest.raises(ValueError, match="it needs init="):
        trainer(tmp_path / "none", "lora.rank=2")
    learnt, _ = trainer(tmp_path / "base", "trainer.steps=3", "trainer.warmup=0", "optimizer.lr=0.01")
    learnt.run()
    words = [f"init={tmp_path / 'base'}", "lora.rank=2", "trainer.warmup=0", "optimizer.lr=0.01"]
    whole, _ = trainer(tmp_path / "whole", *words, "trainer.steps=2")
    before = learnt.ema.model.state_dict()
    whole.run()
    after, added = lora.split(whole.model.state_dict())
    moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert all(name.startswith("conditioning.") for name in moved)
    assert all(up.abs().sum() > 0 for name, (_, up) in added.items() if "attention" in name)
    found = checkpoint.find(tmp_path / "whole")
    states = [name for name in found.tensors["optimizer"] if "exp_avg" in name]
    assert states
    assert all("lora_" in name or "conditioning" in name for name in states)

    half, _ = trainer(tmp_path / "parts", *words, "trainer.steps=1", "trainer.decay=constant")
    half.run()
    rest, settings = trainer(tmp_path / "parts", *words, "trainer.steps=2", "trainer.decay=constant")
    resume(rest, settings)
    rest.run()
    whole, _ = trainer(tmp_path / "again", *words, "trainer.steps=2", "trainer.decay=constant")
    whole.run()
    state = whole.model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in rest.model.state_dict().items())
    other, settings = trainer(tmp_path / "parts", "trainer.steps=2")
    with pytest.raises(ValueError, match="another lora"):
        resume(other, settings)

    own = whole.ema.model
    restored = restore(tmp_path / "again", device=torch.device("cpu")).model
    x, t = torch.randn(2, *whole.modality.sample_shape), torch.tensor([10.0, 700.0])
    with torch.no_grad():
        assert torch.allclose(
            restored(x, t, torch.tensor([0, 1]))[0], own(x, t, torch.tensor([0, 1]))[0], atol=1e-5
        )
