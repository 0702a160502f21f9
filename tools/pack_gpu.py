"""Pack everything that `benchmarks.first_light` needs on a GPU machine without a network.

    python -m tools.pack_gpu [--out .gpu]

Run it on any CPU with the Python, torch and Triton of the GPU machine (3.12, 2.11 and 3.6: `make
gpu-setup`). It writes:

    wheel/              this package with CUDA kernels, without its dependencies
    triton_cache.tar.xz every kernel that the steps launch, compiled for compute capability 9.0,
                        and its launcher
    golden.npz          masks computed on a CPU in float32
    frames/             a video as JPEG files
    peers/              the official package, if the tools to unpack it are available
    contents.json       versions, sizes, and the key of Triton that the cache depends on

Raises SystemExit if a part cannot be built, or if the total exceeds --most MiB.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from benchmarks.first_light.runner import CACHE, ROOT, stage_with_wheel

PARTS = ("wheel", "frames", "peers", "golden", "cache")
REHEARSED = ("setup", "ops", "golden", "profile", "speed", "sweeps", "tasks", "memcheck")
"""Steps of `benchmarks.first_light` that are rehearsed to compile kernels into the cache."""


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=ROOT / ".gpu", help="folder to write to")
    parser.add_argument(
        "--parts",
        nargs="+",
        choices=PARTS,
        default=list(PARTS),
        help="parts to build; others remain unchanged",
    )
    parser.add_argument(
        "--video",
        type=Path,
        default=ROOT / "examples" / "clip.mp4",
        help="video to decode into frames/",
    )
    parser.add_argument(
        "--architectures",
        default="90a-real",
        help="architectures of the CUDA kernels, for CMAKE_CUDA_ARCHITECTURES",
    )
    parser.add_argument("--python", default="3.12", help="version of Python on the GPU machine")
    parser.add_argument("--most", type=float, default=40.0, help="largest total size in MiB")
    parser.add_argument(
        "--inside",
        choices=("frames", "golden"),
        help="for this tool itself: build one part in this process",
    )
    options = parser.parse_args()
    if options.inside is not None:
        if options.inside == "frames":
            make_frames(options.out, options.video)
        else:
            make_golden(options.out)
        return
    version_here = f"{sys.version_info.major}.{sys.version_info.minor}"
    if version_here != options.python:
        raise SystemExit(
            f"expected Python {options.python}, got {version_here}: the wheel would not fit"
        )
    options.out.mkdir(parents=True, exist_ok=True)
    makers: dict[str, Callable[[], None]] = {
        "wheel": lambda: make_wheel(options.out, options.architectures),
        "frames": lambda: make_with_wheel("frames", options.out, options.video),
        "peers": lambda: make_peers(options.out / "peers"),
        "golden": lambda: make_with_wheel("golden", options.out, options.video),
        "cache": lambda: make_cache(options.out),
    }
    for part in PARTS:
        if part in options.parts:
            start = time.monotonic()
            makers[part]()
            sys.stdout.write(f"{part:8} {time.monotonic() - start:6.1f} s\n")
    write_contents(options.out)
    size = sum(f.stat().st_size for f in options.out.rglob("*") if f.is_file()) / 2**20
    sys.stdout.write(f"{options.out}: {size:.1f} MiB\n")
    if size > options.most:
        raise SystemExit(
            f"{options.out}: expected at most {options.most:.0f} MiB (--most), got {size:.1f}"
        )


def make_wheel(out: Path, architectures: str) -> None:
    """Build the package with CUDA kernels."""
    shutil.rmtree(out / "wheel", ignore_errors=True)
    options = ["-q", "--no-build-isolation", "--no-deps"]
    settings = (
        "cmake.define.SAM2_FAST_CUDA=ON",
        f"cmake.define.CMAKE_CUDA_ARCHITECTURES={architectures}",
        f"build-dir={ROOT / 'build' / 'gpu-wheel'}",
    )
    command = [sys.executable, "-m", "pip", "wheel", *options, "-w", str(out / "wheel")]
    command += [argument for setting in settings for argument in ("-C", setting)]
    command.append(str(ROOT))
    subprocess.run(command, check=True)


def make_with_wheel(part: str, out: Path, video: Path) -> None:
    """Build a part in a process that imports the package from the packed wheel."""
    with tempfile.TemporaryDirectory() as folder:
        stage = stage_with_wheel(Path(folder), out)
        command = [sys.executable, "-m", "tools.pack_gpu", "--inside", part]
        command += ["--out", str(out.resolve()), "--video", str(video.resolve())]
        subprocess.run(command, cwd=stage, env=dict(os.environ, PYTHONPATH=str(stage)), check=True)


def make_frames(out: Path, video: Path) -> None:
    """Decode a video into numbered JPEG files."""
    from benchmarks.first_light.context import decode

    shutil.rmtree(out / "frames", ignore_errors=True)
    decode(video, out / "frames")


def make_peers(folder: Path) -> None:
    """Unpack the official package, without torchvision, which the GPU machine has installed."""
    from benchmarks.peers import TOOLS

    script = TOOLS / "peer_packages.sh"
    if not script.is_file():
        sys.stdout.write(f"peers: {script} does not exist; the official package is left out\n")
        return
    shutil.rmtree(folder, ignore_errors=True)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    subprocess.run([str(script), str(folder)], env=dict(os.environ, PATH=path), check=True)
    for name in ("tests", "__pycache__"):
        for unneeded in list(folder.rglob(name)):
            shutil.rmtree(unneeded, ignore_errors=True)
    (folder / "tools").mkdir()
    for tool in TOOLS.glob("*.py"):
        shutil.copy(tool, folder / "tools")


def make_golden(out: Path) -> None:
    """Compute the logits of both models for the packed frames, on a CPU in float32."""
    import numpy as np
    import torch

    from benchmarks.first_light.steps.golden import build, masks

    logits = {}
    with torch.no_grad():
        for name in ("tiny", "large"):
            predictor = build(name, torch.device("cpu"), torch.float32, 1024)
            logits[name] = masks(predictor, str(out / "frames"), 8).numpy().astype(np.float16)
    np.savez_compressed(out / "golden.npz", **logits)


def make_cache(out: Path) -> None:
    """Compile the kernels that the steps launch, and pack Triton's cache.

    The steps are rehearsed on the fake GPU, with the packed wheel.
    """
    shutil.rmtree(CACHE, ignore_errors=True)
    work = ROOT / "build" / "gpu-cache"
    shutil.rmtree(work, ignore_errors=True)
    stub = make_driver_stub(work / "driver")
    environment = dict(
        os.environ,
        TRITON_CACHE_DIR=str(CACHE),
        TRITON_STORE_BINARY_ONLY="1",
        TRITON_LIBCUDA_PATH=str(stub),
        LD_LIBRARY_PATH=str(stub),
        SAM2_FAST_FAKE_LAUNCHERS="1",
    )
    packed = out / "triton_cache.tar.xz"
    with tarfile.open(packed, "w:xz"):
        pass  # the rehearsals unpack this archive, which is still empty
    write_contents(out)
    for step in REHEARSED:  # separately, so that the error names the step that failed
        command = [sys.executable, "-m", "benchmarks.first_light", step, "--rehearse", "fake"]
        command += ["--seconds", "900", "--no-limits"]
        command += ["--carried", str(out), "--out", str(work / "rehearsal")]
        run = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
        )
        if run.returncode != 0:
            raise SystemExit(
                f"the rehearsal of {step} failed:\n{run.stdout[-3000:]}{run.stderr[-1000:]}"
            )
    with tarfile.open(packed, "w:xz") as archive:
        for file in sorted(CACHE.rglob("*")):
            if file.is_file() and not file.name.endswith(".lock"):
                archive.add(file, str(file.relative_to(CACHE)))


def make_driver_stub(folder: Path) -> Path:
    """Build a `libcuda.so.1` with functions that do nothing. Returns its folder.

    With it Triton's launchers can be built and loaded on a machine without a driver.
    """
    import triton

    driver = Path(triton.__file__).parent / "backends" / "nvidia"
    text = "".join(path.read_text() for path in (driver / "driver.c", driver / "driver.py"))
    names = sorted(set(re.findall(r"\bcu[A-Z]\w+(?=\s*\()", text)))
    folder.mkdir(parents=True, exist_ok=True)
    source = folder / "stub.c"
    source.write_text("\n".join(f"int {name}(void) {{ return 0; }}" for name in names) + "\n")
    library = folder / "libcuda.so.1"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
    return folder


def write_contents(out: Path) -> None:
    """Write versions, sizes, and the key that the cache depends on to `contents.json`."""
    from benchmarks.first_light.steps.setup import triton_key

    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    sizes = {
        path.name: sum(f.stat().st_size for f in path.rglob("*") if f.is_file())
        if path.is_dir()
        else path.stat().st_size
        for path in sorted(out.iterdir())
    }
    contents = {
        "triton_key": triton_key(),
        "triton": version("triton"),
        "torch": version("torch"),
        "python": sys.version.split()[0],
        "commit": commit.stdout.strip(),
        "bytes": sizes,
    }
    (out / "contents.json").write_text(json.dumps(contents, indent=1) + "\n")


if __name__ == "__main__":
    main()
