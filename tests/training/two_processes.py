"""One of two processes that train together over gloo.

    two_processes.py RECIPE FOLDER RANK

Writes the weights, losses and gradients of the first step to `FOLDER/rank<RANK>.pt`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from sam2_fast.training import Recipe, Trainer


def main(recipe: str, folder: Path, rank: int) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder / 'rendezvous'}", rank=rank, world_size=2
    )
    trainer = Trainer(Recipe.load(recipe), rank=rank, processes=2)
    totals = []
    gradients = {}
    for losses in trainer.run(progress=False):
        totals.append(losses["total"])
        gradients = gradients or {
            name: p.grad.clone()
            for name, p in trainer.model.named_parameters()
            if p.grad is not None
        }
    torch.save(
        {"model": trainer.model.state_dict(), "totals": totals, "gradients": gradients},
        folder / f"rank{rank}.pt",
    )
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
