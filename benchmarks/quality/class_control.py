"""Do generated images show the requested class?

    python -m benchmarks.quality.class_control runs/image/default [--num 1000]

A small convolutional network, trained on the run's real training pictures, classifies each generated picture. Its
accuracy on real pictures that it has not seen is printed as well. Exit code 1 if fewer than 90 % of the generated
pictures are recognised.
"""

import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import options_of
from ditmoe.conditioning import make_labels
from ditmoe.config.restore import restore
from ditmoe.inference import draw_from
from ditmoe.modality import Samples

WANTED = 0.9


def pixels(samples: Samples) -> Tensor:
    return torch.from_numpy(samples.data).movedim(-1, 1).float() / 127.5 - 1


def labels(samples: Samples) -> Tensor:
    assert samples.labels is not None
    return torch.from_numpy(samples.labels)


def classifier(num_classes: int) -> nn.Module:
    def block(inputs: int, outputs: int) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(), nn.MaxPool2d(2)
        )

    head = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(0.3), nn.Linear(256, num_classes))
    return nn.Sequential(block(3, 16), block(16, 32), block(32, 64), head)


def learn(model: nn.Module, x: Tensor, y: Tensor, epochs: int = 20) -> None:
    """By Adam, on pictures shifted by up to two pixels."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=epochs * -(-len(x) // 64))
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(64):
            shift = torch.randint(-2, 3, (2,)).tolist()
            loss = F.cross_entropy(model(x[rows].roll(shift, dims=(2, 3))), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rate.step()


@torch.no_grad()
def right(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return torch.cat([model(part) for part in x.split(256)]).argmax(1) == y


def main() -> None:
    parser = options_of(__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--num", type=int, default=1000)
    parser.add_argument("--guidance", type=float)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    restored = restore(options.checkpoint)
    classes = list(restored.modality.classes)
    model = classifier(len(classes))
    train, test = (restored.modality.reference(split) for split in ("train", "test"))
    learn(model, pixels(train), labels(train))
    model.eval()
    asked = make_labels(classes, options.num, None)
    condition = restored.model.conditioning.read(asked)
    drawn = draw_from(restored, condition, guidance=options.guidance, seed=options.seed)
    real, generated = right(model, pixels(test), labels(test)), right(model, pixels(drawn), asked)
    print(f"real, unseen: {real.float().mean():.1%} of {len(real)} recognised")
    print(f"generated: {generated.float().mean():.1%} of {len(generated)} recognised as the class asked for")
    print(", ".join(f"{name} {generated[asked == i].float().mean():.0%}" for i, name in enumerate(classes)))
    sys.exit(int(generated.float().mean().item() < WANTED))


if __name__ == "__main__":
    main()
