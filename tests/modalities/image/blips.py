"""A tiny BLIP with random weights that answers questions, its processor and tokenizer, as transformers saves them."""

from pathlib import Path
from typing import Any

import torch

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "yes", "no", "a", "red", "book", "cup", "blue", "?"]
DEC, ENC = len(WORDS), len(WORDS) + 1
SIDE = 16
TOWER = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
TEXT = {"vocab_size": ENC + 1, "max_position_embeddings": 64, "bos_token_id": DEC, "sep_token_id": 3}


def processor(**options: Any) -> Any:
    """Without torchvision, of which transformers makes its first choice."""
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    return BlipImageProcessorPil(**{"size": {"height": SIDE, "width": SIDE}, **options})


def tokenizer() -> Any:
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [("[CLS]", 2), ("[SEP]", 3)]
    words.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    special = {"unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]"}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=words, **special)


def blip() -> Any:
    """Whose answers depend on picture and question."""
    import transformers

    torch.manual_seed(0)
    vision = {**TOWER, "image_size": SIDE, "patch_size": 8}
    model = transformers.BlipForQuestionAnswering(
        transformers.BlipConfig(text_config={**TOWER, **TEXT}, vision_config=vision)
    ).eval()
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape)
    return model


def save(folder: Path) -> Path:
    for part in (blip(), processor(), tokenizer()):
        part.save_pretrained(folder)
    return folder
