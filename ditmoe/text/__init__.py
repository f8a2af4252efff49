"""Text as what is asked for: the conditioning `Text`, encoders of captions, and their states on disk.

An encoder says of a caption states of its tokens and one pooled vector. It is pretrained and never changes (`MiniLM`,
`Transformers`, `Pair`), then each caption is encoded once; or it is a small vocabulary that is trained with the model
(`Learned`).
"""

from ditmoe.text.caption_states import CaptionStates, prepare_captions, write_caption_states
from ditmoe.text.encoder import About, Pretrained, States
from ditmoe.text.learned import Learned
from ditmoe.text.minilm import MiniLM
from ditmoe.text.text import Text
from ditmoe.text.transformers import Pair, Transformers
from ditmoe.text.wordpiece import WordPiece

__all__ = [
    "About",
    "CaptionStates",
    "Learned",
    "MiniLM",
    "Pair",
    "Pretrained",
    "States",
    "Text",
    "Transformers",
    "WordPiece",
    "prepare_captions",
    "write_caption_states",
]
