"""Perplexity and KL divergence of several ways to run a model, on the same token windows of several texts."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from prosparse_export.quiet import quiet
from prosparse_export.text import read_text
from prosparse_export.validation.metrics import Quality, QualitySum
from prosparse_models import load_checkpoint
from prosparse_models.loading.tokenizer import load_tokenizer

__all__ = ["Domain", "Domains", "Figures", "read_domains"]

Logits = Callable[[NDArray[np.int64]], NDArray[np.float32]]
"""From token ids ``[tokens]`` to logits ``[tokens, vocabulary]``, each window by itself."""


@dataclass(frozen=True)
class Figures:
    """How a way to run the model compares with the checkpoint on a text.

    Attributes:
        quality: over all windows.
        increase_error: standard error of the relative change of perplexity, from the windows' changes.
        kl_error: standard error of the mean KL divergence, likewise.
    """

    quality: Quality
    increase_error: float
    kl_error: float


@dataclass(frozen=True)
class Domain:
    """A text, cut into windows.

    Attributes:
        name: the file's name without suffix.
        windows: token ids, ``[windows, tokens]``.
    """

    name: str
    windows: NDArray[np.int64]


def read_domains(model: Path, files: Sequence[Path], count: int, length: int) -> list[Domain]:
    """Return ``count`` windows of ``length`` tokens from the beginning of each text file."""
    with quiet():
        tokenizer = load_tokenizer(model)
    found = []
    for file in files:
        with quiet():
            ids = np.asarray(tokenizer(read_text(file)[: count * length * 12])["input_ids"], np.int64)
        if len(ids) < count * length:
            got = f"expected {count * length} tokens, got {len(ids)}"
            hint = f"pass --windows {len(ids) // length}" if len(ids) >= length else "pass a longer text"
            raise SystemExit(f"text: {file}: {got}\nhint: {hint}")
        found.append(Domain(file.stem, ids[: count * length].reshape(count, length)))
    return found


class Domains:
    """The windows of all texts, with the checkpoint's logits on disk.

    Args:
        model: the model folder.
        domains: the texts.
    """

    def __init__(self, model: Path, domains: Sequence[Domain]) -> None:
        self.domains = domains
        checkpoint = load_checkpoint(model)
        vocabulary = int(checkpoint.model.config.get_text_config().vocab_size)
        rows = sum(domain.windows.size for domain in domains)
        with tempfile.NamedTemporaryFile(dir=tempfile.gettempdir()) as file:  # unlinked, and freed with the array
            self._logits = np.memmap(file.name, np.float32, "w+", shape=(rows, vocabulary))
        first = 0
        with torch.no_grad():
            for domain in domains:
                for window in domain.windows:
                    last = first + len(window)
                    self._logits[first:last] = checkpoint.model(torch.from_numpy(window[None])).logits[0]
                    first = last

    @property
    def spread(self) -> float:
        """Standard deviation of a position's logits, root mean square over the first window."""
        return float(np.sqrt(self._logits[: self.domains[0].windows.shape[1]].var(-1).mean()))

    def figures(self, name: str, logits: Logits) -> dict[str, Figures]:
        """Compare a way to run the model with the checkpoint, by domain."""
        result, first = {}, 0
        for domain in self.domains:
            each = []
            for window in domain.windows:
                last = first + len(window)
                total = QualitySum(name)
                total.add(logits(window), self._logits[first:last], np.append(window[1:], -1))
                each.append(total.result())
                first = last
            result[domain.name] = _over(each)
        return result

    def half_precision_bound(self, matrices: int) -> float:
        """Return the largest mean KL divergence, in nats, that 16 bits explain.

        Every matrix rounds its weights and its input to float16: each product errs by at most 2^-11 of its size twice,
        2^-11 / sqrt(3) root mean square, and errors of ``matrices`` layers add as independent ones. With errors of
        standard deviation s in the logits, KL is s^2 / 2; three standard deviations are allowed.
        """
        error = 2.0**-11 / math.sqrt(3) * math.sqrt(2 * matrices) * self.spread
        return (3 * error) ** 2 / 2


def _over(each: Sequence[Quality]) -> Figures:
    """Return the figures of windows of the same length together."""
    perplexity, own = (np.log([getattr(q, name) for q in each]) for name in ("perplexity", "reference_perplexity"))
    kl = [q.kl_mean for q in each]
    quality = Quality(
        each[0].name,
        sum(q.tokens for q in each),
        math.exp(perplexity.mean()),
        math.exp(own.mean()),
        float(np.mean(kl)),
        float(np.max([q.kl_max for q in each])),  # NumPy's keeps NaN
        float(np.mean([q.top1 for q in each])),
        float(np.mean([q.top5 for q in each])),
        float(np.max([q.max_abs_diff for q in each])),
    )
    change = quality.perplexity / quality.reference_perplexity * _standard_error(perplexity - own)
    return Figures(quality, change, _standard_error(kl))


def _standard_error(values: Sequence[float] | NDArray[np.float64]) -> float:
    """Return the standard error of the mean; NaN for a single value."""
    return float(np.std(values, ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan
