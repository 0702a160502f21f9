"""A whole training run on disk: checkpoints, a log that is a JSON object a step, and weights at the
end.
"""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import torch
from safetensors.torch import save

from sam2_fast.atomic import whole_file
from sam2_fast.training.recipe import Recipe
from sam2_fast.training.trainer import Trainer
from sam2_fast.weights.build import choose_device

CHECKPOINT, WEIGHTS, LOG = "checkpoint.pt", "model.safetensors", "log.jsonl"
LAST = 100
"""Steps that the returned losses are means of."""


def train_to(
    output: str | os.PathLike[str],
    recipe: Recipe,
    *,
    device: str | torch.device | None = None,
    resume: bool = False,
    every: int = 200,
    workers: int = 0,
    tensorboard: bool = False,
    progress: bool = True,
) -> dict[str, float]:
    """Train by `recipe` into the folder `output`; returns the mean losses of the last steps.

    Under `torchrun` (RANK, WORLD_SIZE and LOCAL_RANK are set) each process takes a batch of its
    own, and the first one writes. Raises FileExistsError where `output` has a checkpoint and
    `resume` is not given, FileNotFoundError where it has none and it is.
    """
    folder, rank, processes = (
        Path(output),
        int(os.environ.get("RANK", "0")),
        int(os.environ.get("WORLD_SIZE", "1")),
    )
    there = (folder / CHECKPOINT).is_file()
    if there and not resume:
        raise FileExistsError(
            f"output {folder}: has a {CHECKPOINT} of an earlier run; resume it, or choose another "
            f"folder"
        )
    if resume and not there:
        raise FileNotFoundError(f"output {folder}: has no {CHECKPOINT} to resume from")
    with ExitStack() as stack:
        place = _join(stack, choose_device(device), processes)
        trainer = Trainer(recipe, place, rank=rank, processes=processes, workers=workers)
        if resume:
            trainer.resume(folder / CHECKPOINT)
        if rank == 0:
            folder.mkdir(parents=True, exist_ok=True)
        writers = _writers(stack, folder, trainer.step, tensorboard) if rank == 0 else []
        last: deque[dict[str, float]] = deque(maxlen=LAST)
        for found in trainer.run(folder / CHECKPOINT, every, progress=progress and rank == 0):
            last.append(found)
            for write in writers:
                write(trainer.step, found)
        if rank == 0:
            with whole_file(folder / WEIGHTS) as beside:
                # not save_file: it hides the file from other users, whatever the umask says
                beside.write_bytes(
                    save(
                        {
                            name: t.detach().cpu().contiguous()
                            for name, t in trainer.weights().items()
                        }
                    )
                )
    return (
        {name: sum(found[name] for found in last) / len(last) for name in last[0]} if last else {}
    )


def _join(stack: ExitStack, device: torch.device, processes: int) -> torch.device:
    """The device of this process, which has met the others."""
    if processes == 1:
        return device
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    known = (
        {"backend": "nccl", "device_id": device} if device.type == "cuda" else {"backend": "gloo"}
    )
    torch.distributed.init_process_group(**known)
    stack.callback(torch.distributed.destroy_process_group)
    return device


_Writer = Callable[[int, dict[str, float]], None]


def _writers(stack: ExitStack, folder: Path, step: int, tensorboard: bool) -> list[_Writer]:
    """Of the log, from which steps after `step` are dropped, and of TensorBoard's events."""
    path, kept = folder / LOG, ""
    if step and path.is_file():
        kept = "".join(
            f"{line}\n"
            for line in path.read_text(encoding="utf-8").splitlines()
            if json.loads(line)["step"] <= step
        )
    with whole_file(path) as beside:
        beside.write_text(kept, encoding="utf-8")
    log = stack.enter_context(path.open("a", encoding="utf-8", buffering=1))

    def write(number: int, found: dict[str, float]) -> None:
        log.write(json.dumps({"step": number} | found) + "\n")

    writers: list[_Writer] = [write]
    if tensorboard:
        writers.append(_board(stack, folder))
    return writers


def _board(stack: ExitStack, folder: Path) -> _Writer:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError(
            "tensorboard is not installed: pip install 'sam2-fast[train]', or train without it"
        ) from error
    board = SummaryWriter(folder)
    stack.callback(board.close)

    def write(number: int, found: dict[str, float]) -> None:
        for name, value in found.items():
            board.add_scalar(name, value, number)

    return write
