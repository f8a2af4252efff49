"""Does the state of a word tell what the sentence says of it? Binding, before any sample is drawn.

    python -m benchmarks.quality.text_states [--steps 1500]

Captions of moving digits, "a three moving left and a seven moving up": from the state that the sentence encoder gives
a numeral, a linear classifier predicts which of four ways that digit moves. Between state and classifier are the
projection to the width of `model=nano` and 0, 1 or 2 layers of the token refiner (`conditioning.layers`), all trained
together. Printed is the accuracy on captions that training did not see, with 95 % intervals over digits.
"""

import random
from itertools import chain

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import options_of
from benchmarks.quality.clip_reading import SAID
from ditmoe.text import MiniLM
from ditmoe.text.refiner import TokenRefiner
from modalities.shared.confidence import wilson
from modalities.video.data.described_digits import WAYS
from modalities.video.data.moving_digits import MovingDigits

WIDTH, BATCH, HELD_OUT = 128, 64, 300
Row = tuple[Tensor, int, int]
"""States of a caption, the place of a numeral in it, and the way of that digit."""


def rows(captions: list[str]) -> list[list[Row]]:
    """Per caption, its digits. Each word of these captions, and the colon, is one token; the first is [CLS]."""
    encoder, found = MiniLM(), []
    for caption in captions:
        states = encoder.encode(caption, torch.device("cpu")).tokens.float()
        assert len(states) == len(caption.replace(":", " :").split()) + 2
        found.append(
            [
                (
                    states,
                    1 + len(caption[: said.start("name")].replace(":", " :").split()),
                    list(WAYS).index(said["way"]),
                )
                for said in SAID.finditer(caption)
            ]
        )
    return found


class Reader(nn.Module):
    """Which way a digit moves, from the state of its numeral."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.project, self.refine = nn.Linear(width, WIDTH), TokenRefiner(WIDTH, layers)
        self.refine.initialize()
        self.way = nn.Linear(WIDTH, len(WAYS))

    def forward(self, rows: list[Row]) -> Tensor:
        states = nn.utils.rnn.pad_sequence([row[0] for row in rows], batch_first=True)
        lengths = torch.tensor([len(row[0]) for row in rows])
        mask = torch.arange(states.shape[1]) < lengths[:, None]
        tokens = self.refine(self.project(F.layer_norm(states, states.shape[-1:])), mask)
        return self.way(F.layer_norm(tokens[range(len(rows)), [row[1] for row in rows]], (WIDTH,)))


def accuracy(train: list[Row], held_out: list[Row], layers: int, steps: int, seed: int) -> float:
    """Of a reader after training."""
    torch.manual_seed(seed)
    draw = random.Random(seed)
    reader = Reader(train[0][0].shape[1], layers)
    optimizer = torch.optim.AdamW(reader.parameters(), lr=1e-3)
    for _ in range(steps):
        some = draw.sample(train, BATCH)
        optimizer.zero_grad()
        F.cross_entropy(reader(some), torch.tensor([row[2] for row in some])).backward()
        optimizer.step()
    with torch.no_grad():
        right = reader(held_out).argmax(1) == torch.tensor([row[2] for row in held_out])
    return float(right.float().mean())


def main() -> None:
    parser = options_of(__doc__)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--captions", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    digits = MovingDigits((32, 32), 17, captions=True)
    captions = list(digits.captions_of_split("train", 2 * options.captions))[: options.captions]
    found = rows(captions)
    train, held_out = (list(chain(*part)) for part in (found[:-HELD_OUT], found[-HELD_OUT:]))
    print(
        f"{len(captions)} captions, {len(held_out)} held-out digits, {options.steps} steps, seed {options.seed}"
    )
    for layers in (0, 1, 2):
        right = accuracy(train, held_out, layers, options.steps, options.seed)
        low, high = wilson(right, len(held_out))
        print(f"{layers} layers: {right:.3f} ({low:.3f} .. {high:.3f})", flush=True)


if __name__ == "__main__":
    main()
