"""Evaluate an exported model: ``prosparse-lm-eval run --model prosparse --model_args path=OUT.onnx``.

lm-evaluation-harness finds models in a registry. The command adds ours and runs the harness's own command line.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lm_eval import utils
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from numpy.typing import NDArray
from tqdm import tqdm

from prosparse_export.artifact.model_settings import missing_tokenizer
from prosparse_export.quiet import quiet
from prosparse_export.runtime.model import SparseModel
from prosparse_export.runtime.sampling import Sampling
from prosparse_models.loading.tokenizer import load_tokenizer

__all__ = ["ProSparseLM", "main"]

_MAX_NEW_TOKENS = 256  # as in the harness's Hugging Face model


@register_model("prosparse")
class ProSparseLM(TemplateLM):  # type: ignore[misc]  # the harness is untyped
    """An exported model for the harness, with the same scores as its Hugging Face model.

    Args:
        path: the .onnx file.
        library: register the operator library; ``False`` or ``"False"`` runs the dense function bodies.
        threads: intra-op threads.
        batch_size: requests per batch, padded on the left; requests that sample run alone.
        max_length: maximum number of tokens; None for config.json's max_position_embeddings.
        add_bos_token: whether to prepend the BOS token; None for the tokenizer's default.
        device: passed by the harness, unused.
        max_batch_size: passed by the harness, unused.

    Raises:
        ProSparseError: the artifact cannot be opened or has no tokenizer.
    """

    def __init__(
        self,
        path: str,
        library: bool | str = True,
        threads: int | None = None,
        batch_size: int | str = 1,
        max_length: int | None = None,
        add_bos_token: bool | None = None,
        device: str | None = None,
        max_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        use_library = str(library).lower() not in ("false", "0", "no")
        self.model = SparseModel.open(path, library=use_library, threads=threads)
        folder = Path(path).parent
        if self.model.tokenizer is None:
            raise missing_tokenizer(folder)
        with quiet():
            self.tokenizer = load_tokenizer(folder)
        self.batch_size = int(batch_size) if str(batch_size).isdecimal() else 1
        self.max_length = int(max_length or self.model.context or 2048)
        self.add_bos_token = add_bos_token

    @property
    def eot_token_id(self) -> int:
        """The EOS token."""
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """The token that replaces an empty context: BOS, or EOS if there is no BOS."""
        bos = self.tokenizer.bos_token_id
        return int(bos) if bos is not None else self.eot_token_id

    @property
    def tokenizer_name(self) -> str:
        """The tokenizer's name in the harness's request cache."""
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Return the token ids of ``string``."""
        special = self.add_bos_token if add_special_tokens is None else add_special_tokens
        if add_special_tokens is None and string.startswith(self.tokenizer.decode([self.prefix_token_id])):
            special = False
        keywords = {} if special is None else {"add_special_tokens": special}
        ids = self.tokenizer.encode(string, **keywords)
        return list(map(int, ids))

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Return a conversation in the format of the tokenizer's chat template."""
        text: str = self.tokenizer.apply_chat_template(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )
        return text

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **unused: Any
    ) -> list[tuple[float, bool]]:
        order = sorted(range(len(requests)), key=lambda i: -len(requests[i][1]) - len(requests[i][2]))
        results: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        bar = tqdm(total=len(requests), desc="loglikelihood", disable=disable_tqdm)
        for begin in range(0, len(order), self.batch_size):
            batch = order[begin : begin + self.batch_size]
            rows = [(requests[i][1] + requests[i][2])[-(self.max_length + 1) :][:-1] for i in batch]
            ids, mask = _pad(rows)
            logits, _ = self.model.forward(ids, mask)
            for row, i in enumerate(batch):
                key, _, continuation = requests[i]
                results[i] = _score(logits[row, -len(continuation) :], np.asarray(continuation, np.int64))
                if key is not None:
                    self.cache_hook.add_partial("loglikelihood", key, results[i])
            bar.update(len(batch))
        bar.close()
        return results

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Return the log-likelihood of whole texts, in disjoint windows of ``max_length`` tokens."""
        results = []
        for request in requests:
            (text,) = request.args
            pairs = utils.get_rolling_token_windows(
                token_list=self.tok_encode(text),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            windows = [(None, *utils.make_disjoint_window(pair)) for pair in pairs]
            total = sum(value for value, _ in self._loglikelihood_tokens(windows, disable_tqdm=True))
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), total)
            results.append(total)
        return results

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Return the continuation of each context, up to a stop string, a stop token or the limit.

        Requests of equal options run together, `batch_size` at a time. Those that sample run alone: a row's random
        numbers depend on its place in the batch.
        """
        texts = [""] * len(requests)
        prompts = [self.tok_encode(request.args[0]) for request in requests]
        groups: dict[str, list[int]] = {}
        for i, request in enumerate(requests):
            groups.setdefault(json.dumps(request.args[1], sort_keys=True, default=str), []).append(i)
        bar = tqdm(total=len(requests), desc="generate_until", disable=disable_tqdm)
        for group in groups.values():
            options = requests[group[0]].args[1]
            size = 1 if _temperature(options) > 0 else self.batch_size
            group.sort(key=lambda i: -len(prompts[i]))  # similar lengths together, for less padding
            for begin in range(0, len(group), size):
                batch = group[begin : begin + size]
                for i, text in zip(batch, self._continue([prompts[i] for i in batch], options), strict=True):
                    self.cache_hook.add_partial("generate_until", requests[i].args, text)
                    texts[i] = text
                bar.update(len(batch))
        bar.close()
        return texts

    def _continue(self, prompts: Sequence[list[int]], options: Mapping[str, Any]) -> list[str]:
        """Return the continuation of each prompt of a batch."""
        count = int(options.get("max_gen_toks", _MAX_NEW_TOKENS))
        room = max(self.max_length - count, 1)
        steps = self.model.stream(
            [prompt[-room:] or [self.prefix_token_id] for prompt in prompts],
            max_new_tokens=count,
            sampling=Sampling(_temperature(options), seed=options.get("seed", 0)),
        )
        until = options.get("until") or []
        stops = [stop for stop in ([until] if isinstance(until, str) else until) if stop]
        end = {*self.model.stop, self.eot_token_id}
        tokens: list[list[int]] = [[] for _ in prompts]
        texts = [""] * len(prompts)
        open_rows = set(range(len(prompts)))
        for step in steps:
            for row in sorted(open_rows):
                if int(step[row]) in end:
                    open_rows.discard(row)
                    continue
                tokens[row].append(int(step[row]))
                texts[row] = self.tokenizer.decode(tokens[row], skip_special_tokens=True)
                if any(stop in texts[row] for stop in stops):
                    open_rows.discard(row)
            if not open_rows:
                break
        for stop in stops:
            texts = [text.split(stop)[0] for text in texts]
        return texts


def _temperature(options: Mapping[str, Any]) -> float:
    return float(options.get("temperature", 0.0)) if options.get("do_sample") else 0.0


def _score(logits: NDArray[np.float32], continuation: NDArray[np.int64]) -> tuple[float, bool]:
    """Return the log-likelihood of ``continuation``, and whether greedy search gives it."""
    values = logits.astype(np.float64)
    values -= values.max(-1, keepdims=True)
    log_p = values - np.log(np.exp(values).sum(-1, keepdims=True))
    chosen = log_p[np.arange(len(continuation)), continuation]
    return float(chosen.sum()), bool((logits.argmax(-1) == continuation).all())


def _pad(rows: Sequence[Sequence[int]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    width = max(map(len, rows))
    ids, mask = np.zeros((len(rows), width), np.int64), np.zeros((len(rows), width), np.int64)
    for i, row in enumerate(rows):
        ids[i, width - len(row) :], mask[i, width - len(row) :] = row, 1
    return ids, mask


def main() -> None:
    """Run the harness's command line with the model ``prosparse`` registered."""
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
