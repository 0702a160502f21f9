"""A training run on disk: checkpoints, a log with one JSON object per step, and the weights."""

from __future__ import annotations

import os
import warnings
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import torch
from safetensors.torch import save

from sam2_fast.files.atomic import whole_file
from sam2_fast.io.json_files import parse_json, read_text, to_json
from sam2_fast.training.recipe import Recipe
from sam2_fast.training.trainer import Trainer
from sam2_fast.weights.build import choose_device

CHECKPOINT = "checkpoint.pt"
WEIGHTS = "model.safetensors"
LOG = "log.jsonl"
MAX_LOG_BYTES = 2**30
"""Largest log that a run continues."""
LAST = 100
"""Number of last steps over which the returned losses are averaged."""


def train_to(
    output: str | os.PathLike[str],
    recipe: Recipe,
    *,
    device: str | torch.device | None = None,
    resume: bool = False,
    overwrite: bool = False,
    every: int = 200,
    workers: int = 0,
    tensorboard: bool = False,
    progress: bool = True,
    max_log_bytes: int = MAX_LOG_BYTES,
) -> dict[str, float]:
    """Train by `recipe` into the folder `output`. Returns the mean losses of the last steps.

    Under `torchrun` (RANK, WORLD_SIZE and LOCAL_RANK are set) each process trains on its own batch,
    and the first process writes the files. Warns of files that no clip can show, such as videos
    with too few annotated frames. Raises FileExistsError if `output` has files of an earlier run,
    unless `resume` or `overwrite`, which removes them, and FileNotFoundError if it has no
    checkpoint and `resume` is True.

    max_log_bytes: limit of the log of a training that is resumed; ValueError above it.
    """
    folder = Path(output)
    rank = int(os.environ.get("RANK", "0"))
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    has_checkpoint = (folder / CHECKPOINT).is_file()
    earlier = [name for name in (CHECKPOINT, WEIGHTS, LOG) if (folder / name).is_file()]
    if earlier and not (resume or overwrite):
        raise FileExistsError(
            f"output {folder}: has a {earlier[0]} of an earlier run; resume it, or choose "
            f"another folder, or overwrite it"
        )
    if resume and not has_checkpoint:
        raise FileNotFoundError(f"output {folder}: has no {CHECKPOINT} to resume from")
    with ExitStack() as stack:
        own_device = _join_group(stack, choose_device(device), processes)
        trainer = Trainer(recipe, own_device, rank=rank, processes=processes, workers=workers)
        if resume:
            trainer.resume(folder / CHECKPOINT)
        if rank == 0:
            _warn_of_unused(recipe)
            folder.mkdir(parents=True, exist_ok=True)
            for name in () if resume else earlier:
                (folder / name).unlink()
        writers = []
        if rank == 0:
            writers = _writers(stack, folder, trainer.step, tensorboard, max_log_bytes)
        last: deque[dict[str, float]] = deque(maxlen=LAST)
        for losses in trainer.run(folder / CHECKPOINT, every, progress=progress and rank == 0):
            last.append(losses)
            for write in writers:
                write(trainer.step, losses)
        if rank == 0:
            with whole_file(folder / WEIGHTS) as beside:
                # save_file would make the file unreadable for other users, whatever the umask is.
                beside.write_bytes(
                    save(
                        {
                            name: t.detach().cpu().contiguous()
                            for name, t in trainer.weights().items()
                        }
                    )
                )
    if not last:
        return {}
    return {name: sum(losses[name] for losses in last) / len(last) for name in last[0]}


def _warn_of_unused(recipe: Recipe) -> None:
    """Warn of what the folders of the sources have and no clip shows."""
    if unused := recipe.unused():
        more = f"; and {len(unused) - 5} more" if len(unused) > 5 else ""
        message = f"training does not use: {'; '.join(unused[:5])}{more}"
        warnings.warn(message, UserWarning, stacklevel=3)


def _join_group(stack: ExitStack, device: torch.device, processes: int) -> torch.device:
    """Join the process group if there are several processes; returns the device of this one."""
    if processes == 1:
        return device
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    options = (
        {"backend": "nccl", "device_id": device} if device.type == "cuda" else {"backend": "gloo"}
    )
    torch.distributed.init_process_group(**options)
    stack.callback(torch.distributed.destroy_process_group)
    return device


_Writer = Callable[[int, dict[str, float]], None]


def _writers(
    stack: ExitStack,
    folder: Path,
    step: int,
    tensorboard: bool,
    max_log_bytes: int = MAX_LOG_BYTES,
) -> list[_Writer]:
    """Functions that write the losses of a step to the log and to TensorBoard.

    Steps after `step` are removed from an existing log.
    """
    path = folder / LOG
    earlier = ""
    if step and path.is_file():
        advice = "remove it, or raise the limit with max_log_bytes="
        lines = read_text(path, "log", max_bytes=max_log_bytes, advice=advice).splitlines()
        earlier = "".join(f"{line}\n" for line in lines if _step_of(line, path) <= step)
    with whole_file(path) as beside:
        beside.write_text(earlier, encoding="utf-8")
    log = stack.enter_context(path.open("a", encoding="utf-8", buffering=1))

    def write(number: int, losses: dict[str, float]) -> None:
        log.write(to_json({"step": number} | losses) + "\n")

    writers: list[_Writer] = [write]
    if tensorboard:
        writers.append(_board(stack, folder))
    return writers


def _step_of(line: str, path: Path) -> int:
    """The number of the step of a line of the log."""
    row = parse_json(line, f"log {path}")
    number = row.get("step") if isinstance(row, dict) else None
    if type(number) is not int:
        raise ValueError(f"log {path}: expected rows with a step, got {line!r:.100}")
    return number


def _board(stack: ExitStack, folder: Path) -> _Writer:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError(
            "tensorboard is not installed: pip install 'sam2-fast[train]', or train without it"
        ) from error
    board = SummaryWriter(folder)
    stack.callback(board.close)

    def write(number: int, losses: dict[str, float]) -> None:
        for name, value in losses.items():
            board.add_scalar(name, value, number)

    return write
