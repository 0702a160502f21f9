"""One of two processes that train together over gloo: recipe, folder and rank as arguments; weights
and losses as `rank<N>.pt`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from sam2_fast.training import Recipe, Trainer


def main(recipe: str, folder: Path, rank: int) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=2
    )
    trainer = Trainer(Recipe.load(recipe), rank=rank, processes=2)
    totals, gradients = [], {}
    for found in trainer.run(progress=False):
        totals.append(found["total"])
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
