"""Text as what is asked for: tokens of a caption to which blocks attend, and a vector that joins the time."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from os import PathLike
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ditmoe.conditioning import TEXT, Condition, Conditioning, Embedded, captions_of, class_caption, text_rows
from ditmoe.conditioning.class_label import make_labels
from ditmoe.distributed import say
from ditmoe.outside import at_home, check_number, decoded, printable, read_regular
from ditmoe.text.encoder import About, Pretrained
from ditmoe.text.frozen import Frozen
from ditmoe.text.learned import Learned
from ditmoe.text.refiner import TokenRefiner

LONGEST_PROMPT, MOST_PROMPTS, LARGEST_FILE = 20_000, 10_000, 2**24
"""Letters of a prompt, prompts at a time, and bytes of a file of them."""
MOST_LAYERS = 16
EXAMPLES, LONGEST_EXAMPLE = 16, 200
"""Training captions that a checkpoint keeps, to draw what is worth looking at when nobody asks for anything."""


class Text(Conditioning):
    """Captions, by cross-attention to the states of their tokens (PixArt-alpha, arXiv 2310.00426) and a pooled vector.

        tokens = refine(W normalize(states) + b)           vector = v + V pooled

    V starts at zero as the blocks' cross-attention does: a fresh model predicts alike whatever is asked, and one that
    starts from a model of classes predicts what that one does when no class is asked for, whose vector v becomes.
    A pooled vector alone says which things there are and not which of them does what; cross-attention can.

    Args:
        encoder: makes a `Pretrained` encoder, or `Learned`.
        tokens, pooled: whether the model attends to tokens, and gets the vector; at least one.
        layers: of the `TokenRefiner`, trained with the model; 0: none.
        states: a folder with what `prepare` encoded; what it lacks is encoded when it is first asked for.
        examples: captions to draw when nothing is asked for.
        about: of a pretrained encoder, `About`: a checkpoint keeps it.
        caption_words: the modality's, for an encoder that is learnt.
    """

    words: ClassVar[Mapping[str, str]] = {
        "prompt": "a sentence; or a list with one for each sample",
        "prompts": "a file with a prompt on each line, one for each sample",
        "negative": "a sentence that guidance leads away from",
        "label": "a class by name or number, which asks for 'a <class>'; none asks for nothing",
    }
    away_words: ClassVar[Collection[str]] = ("negative",)
    opens: ClassVar[tuple[str, ...]] = ("states",)
    reads_captions: ClassVar[bool] = True

    def __init__(
        self,
        hidden_size: int,
        num_classes: int,
        encoder: Callable[..., Any],
        tokens: bool = True,
        pooled: bool = True,
        layers: int = 0,
        states: str | PathLike | None = None,
        examples: Sequence[str] = (),
        about: Mapping[str, Any] | None = None,
        caption_words: Sequence[str] = (),
    ) -> None:
        super().__init__(num_classes)
        if not tokens and not pooled:
            raise ValueError("conditioning=text must have tokens, pooled, or both")
        check_number("layers", layers, 0, MOST_LAYERS, whole=True)
        self.gives_tokens, self.examples = tokens, [clean(example) for example in examples]
        if is_learned(encoder):
            self.encoder: Learned | Frozen = encoder(caption_words=caption_words)
        else:
            # A path that a stranger's configuration names (`Withheld`) is left alone.
            folder = at_home(states) if isinstance(states, str) else None
            kept = None if about is None else About.read(about)
            self.encoder = Frozen(encoder(), kept, folder, tokens, pooled)
        self.tokens = nn.Linear(self.encoder.width, hidden_size) if tokens else None
        self.pooled = nn.Linear(self.encoder.pooled_width, hidden_size, bias=False) if pooled else None
        self.refiner = TokenRefiner(hidden_size, layers) if tokens and layers else None
        self.bias = nn.Parameter(torch.zeros(hidden_size))

    parameter_kinds: ClassVar[Mapping[str, str]] = {"bias": "bias"}

    @torch.no_grad()
    def initialize(self) -> None:
        nn.init.zeros_(self.bias)
        if self.pooled is not None:
            nn.init.zeros_(self.pooled.weight)

    @classmethod
    def remember(cls, section: Mapping[str, Any], captions: Iterable[str]) -> dict[str, Any]:
        """What a checkpoint must have in this section beside what the person said.

        Args:
            section: options, made.
            captions: of training samples.
        """
        about = None if is_learned(section["encoder"]) else section["encoder"]().about.plain()
        seen = [c for c in dict.fromkeys(map(squeezed, islice(captions, 4096))) if is_example(c)]
        step = max(1, len(seen) // EXAMPLES)
        return {"about": about, "examples": section.get("examples") or seen[::step][:EXAMPLES]}

    def read(self, asked: Any) -> Condition:
        """Of captions, with the states of the encoder; what has these already comes back as it is."""
        condition = super().read(asked)
        if all(name in condition.values for name in self.encoder.values):
            return condition
        if (captions := captions_of(condition)) is None:
            raise ValueError(
                "conditioning=text reads captions, and what is asked for has none: modality.captions=true in training, "
                "prompt= in sampling"
            )
        device = self.bias.device if self.bias.device.type != "meta" else torch.device("cpu")
        values = self.encoder.read([squeezed(caption) for caption in captions], device)
        there = condition.null.device
        moved = {name: value.to(there) for name, value in values.items()}
        empty = torch.tensor([not caption.strip() for caption in captions], device=there)
        return replace(condition, values={**condition.values, **moved}, null=condition.null | empty)

    def forward(self, condition: Condition) -> Embedded:
        states, mask, pooled = self.encoder(condition.values, condition.null)
        vector = self.bias.expand(len(condition), -1)
        if self.pooled is not None:
            vector = vector + self.pooled(pooled.type_as(self.bias))
        if self.tokens is None:
            return Embedded(vector, condition.null)
        states = F.layer_norm(states, states.shape[-1:]).type_as(self.bias)
        tokens = self.tokens(states)
        return Embedded(vector, condition.null, self.refiner(tokens, mask) if self.refiner else tokens, mask)

    def nothing(self, num: int) -> Condition:
        blank = {TEXT: torch.zeros(num, 1, dtype=torch.uint8), **self.encoder.blank(num)}
        return Condition(blank, torch.ones(num, dtype=torch.bool))

    def ask(
        self, num: int, classes: Sequence[str], generator: torch.Generator | None = None, **words: Any
    ) -> Condition:
        check_number("num", num, 0, whole=True)
        said = {n: value for n, value in words.items() if value is not None and n not in self.away_words}
        if len(said) > 1:
            raise ValueError(f"{' and '.join(said)} cannot be said together: one says what is drawn")
        name: str = next(iter(said), "")
        value: Any = said.get(name)
        value = value.tolist() if hasattr(value, "tolist") else value
        if name == "prompts":
            captions = prompts_of(value)
        elif name == "prompt":
            captions = prompts(value, "prompt")
            captions = captions if is_list(value) else captions * num
        elif name == "label":
            captions = [
                caption_of(one, classes, generator) for one in (value if is_list(value) else [value] * num)
            ]
        else:
            some = self.examples or [caption_of(i, classes) for i in range(len(classes))] or [""]
            captions = [some[i % len(some)] for i in range(num)]
        self._remark(dict.fromkeys(captions) if said else ())
        return self._asked(captions)

    def away(self, asked: Condition, negative: Any = None, **words: Any) -> Condition | None:
        if negative is None or negative == "":
            return None
        captions = prompts(negative, "negative")
        captions = captions if is_list(negative) else captions * len(asked)
        if len(captions) != len(asked):
            raise ValueError(
                f"negative must be one, or one for each of {len(asked)} prompts, got {len(captions)}"
            )
        self._remark(dict.fromkeys(captions))
        condition = self._asked(captions).to(asked.null.device)
        return replace(condition, values={**asked.values, **condition.values})

    def adopted(self, weights: Mapping[str, Tensor]) -> dict[str, tuple[str, Tensor]]:
        name = "conditioning.table.weight"  # of `ClassLabel`: the last row is no class
        if name in weights and weights[name].ndim == 2 and weights[name].shape[1:] == self.bias.shape:
            return {"bias": (name, weights[name][-1])}
        return {}

    def use(self, encoder: Any) -> None:
        """Open the text encoder elsewhere: a `Pretrained` one, a folder or a name on the hub, or a list of two.

        Raises:
            ValueError: one line, if it is not the one of the training.
        """
        if not isinstance(self.encoder, Frozen):
            raise ValueError("this model's text encoder is a part of it: text_encoder does not go with it")
        lookup = self.encoder.lookup
        lookup.encoder = encoder if isinstance(encoder, Pretrained) else lookup.encoder.at(encoder)
        lookup.check()

    def _asked(self, captions: Sequence[str]) -> Condition:
        rows = text_rows(captions)
        return self.read(Condition({TEXT: rows}, torch.tensor([not caption for caption in captions])))

    def _remark(self, captions: Iterable[str]) -> None:
        """Say which prompts are cut, and of which the encoder understands little."""
        ends = None
        for caption in islice(captions, 20):
            if not caption:
                continue
            ends = self.encoder.count("")[0] if ends is None else ends
            tokens, unknown = self.encoder.count(caption)
            short = caption if len(caption) <= 60 else f"{caption[:57]}..."
            if tokens > self.encoder.limit:
                say(
                    f"note     the encoder reads {self.encoder.limit} of {tokens} tokens of this prompt, up to "
                    f"{self._end(caption)!r} (conditioning.encoder.limit, at training): {short}"
                )
            elif 2 * unknown >= tokens - ends:
                say(f"note     the encoder knows few words of this prompt: {short}")

    def _end(self, caption: str) -> str:
        """The last words that are read of a caption that is cut."""
        words = caption.split()
        low, high = 0, len(words)
        while low < high:  # as many words as fit
            middle = (low + high + 1) // 2
            fits = self.encoder.count(" ".join(words[:middle]))[0] <= self.encoder.limit
            low, high = (middle, high) if fits else (low, middle - 1)
        return " ".join(words[max(0, low - 4) : low])


def is_learned(encoder: Any) -> bool:
    """Whether what makes an encoder makes one that is trained with the model."""
    return getattr(getattr(encoder, "func", encoder), "learns_words", False)


def is_list(value: Any) -> bool:
    """Whether a word has something for each sample."""
    return isinstance(value, Sequence) and not isinstance(value, str)


def squeezed(caption: str) -> str:
    """Without spaces and ends of lines that say nothing."""
    return " ".join(caption.split())


def clean(prompt: Any, name: str = "prompt") -> str:
    """A sentence that somebody said, on one line.

    Raises:
        ValueError: one line, if it is none, is empty, too long, or holds what no screen shows.
    """
    if isinstance(prompt, bool) or not isinstance(prompt, str | int | float):
        raise ValueError(f"{name} must be text, or a list of texts, got {type(prompt).__name__}")
    text = squeezed(str(prompt))
    if not text:
        raise ValueError(f"{name} must say something, got {str(prompt)!r}; label=none asks for nothing")
    if len(text) > LONGEST_PROMPT:
        raise ValueError(f"{name} must have at most {LONGEST_PROMPT} letters, got {len(text)}")
    if (shown := printable(text)) != text:
        raise ValueError(f"{name} must be text that can be printed, got {shown[:200]}")
    return text


def prompts(value: Any, name: str) -> list[str]:
    """What a word says: one sentence, or several."""
    if not is_list(value):
        return [clean(value, name)]
    if not 0 < len(value) <= MOST_PROMPTS:
        raise ValueError(f"{name} must have between 1 and {MOST_PROMPTS} sentences, got {len(value)}")
    return [clean(one, name) for one in value]


def prompts_of(file: Any) -> list[str]:
    """A file's lines but for empty ones.

    Raises:
        ValueError, OSError: one line, with the number of the line that is wrong.
    """
    if not isinstance(file, str | PathLike):
        raise ValueError(f"prompts must be a file, got {file!r}")
    path = at_home(file)
    text = decoded(read_regular(path, LARGEST_FILE))
    lines = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    if not 0 < len(lines) <= MOST_PROMPTS:
        raise ValueError(
            f"{printable(path)} must have between 1 and {MOST_PROMPTS} prompts, one a line, got {len(lines)}"
        )
    return [clean(line, f"line {number} of {printable(path)}") for number, line in lines]


def caption_of(label: Any, classes: Sequence[str], generator: torch.Generator | None = None) -> str:
    """The caption that stands for a class by name or number: its name with an article; for none the empty one.

    Raises:
        ValueError: naming the nearest class, if it is none.
    """
    number = int(make_labels(classes, 1, label, generator))
    return "" if number == len(classes) else class_caption(str(classes[number]))


def is_example(caption: str) -> bool:
    """Whether a caption can be kept in a configuration: one that no reader of it takes for a path or a formula."""
    marks = ("/", "\\", "..", "${", "\0")
    plain = not any(mark in caption for mark in marks) and not caption.startswith("~")
    return bool(caption) and len(caption) <= LONGEST_EXAMPLE and plain and printable(caption) == caption
