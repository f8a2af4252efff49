"""Text conditioning: the conditioning `Text`, encoders of captions, and their states on disk.

An encoder maps a caption to states of its tokens and one pooled vector. It is either pretrained and frozen (`MiniLM`,
`Transformers`, `Pair`), and encodes each caption once; or a small vocabulary that is trained with the model
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
