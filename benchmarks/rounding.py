"""What rounding does to a model, in PyTorch alone: which matrices lose most in 8 and 4 bits, and along which side.

    python benchmarks/rounding.py MODEL_DIR

Each line rounds one group of matrices as `prosparse-export --weights i8` and `i4` do and gives perplexity and the
mean KL divergence per token from the model as it is. down_proj also with the other side's blocks, as other engines
have them, and with a power of two per output taken out first. The last line adds noise of 1e-6 to every weight: what
an activation with a jump (FATReLU) makes of float32's own rounding.
"""

from __future__ import annotations

from pathlib import Path

import click
import torch
from torch import nn

from graph_passes.formats import Format
from graph_passes.weights.quantization import rounded
from prosparse_export.text import default_text
from prosparse_models import load_checkpoint
from prosparse_models.loading.tokenizer import load_tokenizer

GROUPS = ("embed", "attn", "gate_proj", "up_proj")


def stored(weight: torch.Tensor, weights: Format) -> torch.Tensor:
    """Return ``weight`` [rows, columns] as the format has it: blocks of 32 columns share a scale."""
    return torch.from_numpy(rounded(weight.numpy(), weights))


def by_d_model(weight: torch.Tensor, weights: Format) -> torch.Tensor:
    """Round down_proj [d_model, d_ff] as the operators store it."""
    return stored(weight.T.contiguous(), weights).T


def by_d_model_scaled(weight: torch.Tensor, weights: Format) -> torch.Tensor:
    """The same, after the outputs' root mean squares have been brought within a factor of two."""
    size = torch.exp2(torch.round(torch.log2(weight.square().mean(1, keepdim=True).sqrt())))
    return by_d_model(weight / size, weights) * size


SIDES = {"by d_model": by_d_model, "by d_ff": stored, "by d_model, outputs scaled": by_d_model_scaled}
FORMATS: tuple[Format, ...] = ("i8", "i4")


@click.command()
@click.argument("model_dir", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--tokens", default=512, show_default=True)
@torch.no_grad()
def main(model_dir: Path, tokens: int) -> None:
    """Print a line for each group of MODEL_DIR's matrices."""
    tokenizer = load_tokenizer(model_dir)
    ids = torch.tensor([tokenizer(default_text())["input_ids"][:tokens]])
    model = load_checkpoint(model_dir).model
    own = {name: parameter.clone() for name, parameter in model.named_parameters()}

    def logs() -> torch.Tensor:
        return torch.log_softmax(model(input_ids=ids).logits[0], -1)

    def show(what: str) -> None:
        new = logs()
        perplexity = nn.functional.nll_loss(new[:-1], ids[0, 1:]).exp().item()
        divergence = (base.exp() * (base - new)).sum(-1).mean().item()
        click.echo(f"{what:40} perplexity {perplexity:9.3f}  KL {divergence:.1e}")
        for name, parameter in model.named_parameters():
            parameter.copy_(own[name])

    base = logs()
    show("as it is")
    for weights in FORMATS:
        for group in GROUPS:
            for name, parameter in model.named_parameters():
                if parameter.ndim == 2 and group in name:
                    parameter.copy_(stored(parameter, weights))
            show(f"{weights}: {group}")
        for side, rounding in SIDES.items():
            for name, parameter in model.named_parameters():
                if "down_proj" in name:
                    parameter.copy_(rounding(parameter, weights))
            show(f"{weights}: down_proj {side}")
    for parameter in model.parameters():
        parameter.mul_(1 + 1e-6 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    show("noise of 1e-6")


if __name__ == "__main__":
    main()
