"""Greedy decoding of an artifact by optimum-onnx's ORTModelForCausalLM, in an environment of its own.

    python tests/producers/load_in_optimum.py FOLDER LIBRARY COUNT ID...       # LIBRARY: none for the function bodies

Prints the new token ids.
"""

from __future__ import annotations

import sys


def main() -> None:
    """See above."""
    import onnxruntime
    import torch
    from optimum.onnxruntime import ORTModelForCausalLM

    folder, library, count, *ids = sys.argv[1:]
    options = onnxruntime.SessionOptions()
    if library != "none":
        options.register_custom_ops_library(library)
    model = ORTModelForCausalLM.from_pretrained(folder, session_options=options)
    prompt = torch.tensor([[*map(int, ids)]])
    length = {"max_new_tokens": int(count), "min_new_tokens": int(count)}
    new = model.generate(prompt, attention_mask=torch.ones_like(prompt), do_sample=False, **length)
    print(*new[0, prompt.shape[1] :].tolist())


if __name__ == "__main__":
    main()
