"""What rounding does to a model, in PyTorch alone: which matrices lose most in 8 and 4 bits, and along which side.

    python benchmarks/rounding.py MODEL_DIR

Each line rounds one group of matrices, symmetric, one float16 scale per block of 32, and gives perplexity and the
mean KL divergence per token from the model as it is. The last line adds noise of 1e-6 to every weight: what an
activation with a jump (FATReLU) makes of float32's own rounding.
"""

from __future__ import annotations

from pathlib import Path

import click
import torch
from torch import nn

from prosparse_export.validation import default_text
from prosparse_models import load_checkpoint
from prosparse_models.tokenizer import load_tokenizer

GROUPS = ("embed", "attn", "gate_proj", "up_proj")


def rounded(weight: torch.Tensor, bits: int) -> torch.Tensor:
    """Return ``weight`` [rows, columns] with blocks of 32 columns rounded."""
    blocks = weight.reshape(weight.shape[0], -1, 32)
    top = 2 ** (bits - 1) - 1
    scale = (blocks.abs().amax(-1, keepdim=True) / top).half().float()
    return (torch.round(blocks / scale.clamp_min(1e-30)).clamp(-top - 1, top) * scale).reshape(weight.shape)


@click.command()
@click.argument("model_dir", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--tokens", default=512, show_default=True)
@torch.no_grad()
def main(model_dir: Path, tokens: int) -> None:
    """Print a line for each group of MODEL_DIR's matrices."""
    tokenizer = load_tokenizer(model_dir)
    ids = torch.tensor([tokenizer(default_text())["input_ids"][:tokens]])
    model = load_checkpoint(model_dir).model
    stored = {name: parameter.clone() for name, parameter in model.named_parameters()}

    def logs() -> torch.Tensor:
        return torch.log_softmax(model(input_ids=ids).logits[0], -1)

    def show(what: str) -> None:
        new = logs()
        perplexity = nn.functional.nll_loss(new[:-1], ids[0, 1:]).exp().item()
        divergence = (base.exp() * (base - new)).sum(-1).mean().item()
        click.echo(f"{what:28} perplexity {perplexity:9.3f}  KL {divergence:.1e}")
        for name, parameter in model.named_parameters():
            parameter.copy_(stored[name])

    base = logs()
    show("as it is")
    for bits in (8, 4):
        for group in GROUPS:
            for name, parameter in model.named_parameters():
                if parameter.ndim == 2 and group in name:
                    parameter.copy_(rounded(parameter, bits))
            show(f"{bits} bits: {group}")
        for side in ("d_model", "d_ff"):
            for name, parameter in model.named_parameters():
                if "down_proj" in name:
                    new = rounded(parameter, bits) if side == "d_ff" else rounded(parameter.T, bits).T
                    parameter.copy_(new)  # it is stored [d_model, d_ff]
            show(f"{bits} bits: down_proj by {side}")
    for parameter in model.parameters():
        parameter.mul_(1 + 1e-6 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    show("noise of 1e-6")


if __name__ == "__main__":
    main()
