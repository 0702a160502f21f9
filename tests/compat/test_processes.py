"""Child processes of a program with the shim have it, too."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import sam2_fast.compat as compat
from sam2_fast.compat.shim import children
from sam2_fast.compat.shim.copies import STUB
from tests.compat.programs import ROOT, environment, run
from tests.compat.test_shim import forget_sam2

SHIM = (sys.executable, "-m", "sam2_fast.compat")
POOL = """
    import multiprocessing as mp
    import sys
    import sam2.utils.amg

    class Point:
        x = 3

    def work(point):
        import sam2
        return type(sam2).__name__, type(point).__module__, point.x

    if __name__ == "__main__":
        context = mp.get_context(sys.argv[1])
        with context.Pool(1) as pool:
            print(pool.apply(work, [Point()]), pool.apply(type, [sam2.utils.amg.MaskData()]))
"""
LOADER = """
    import sys
    from sam2.utils.amg import build_point_grid
    from torch.utils.data import DataLoader, Dataset

    class Grids(Dataset):
        def __len__(self):
            return 2

        def __getitem__(self, index):
            return build_point_grid(index + 1).sum()

    if __name__ == "__main__":
        loader = DataLoader(Grids(), num_workers=1, multiprocessing_context=sys.argv[1])
        print([batch.item() for batch in loader])
"""
TORCHRUN = """
    import os
    import sam2
    print(os.environ["RANK"], type(sam2).__name__, flush=True)
"""
CHILD = "import sam2; print(type(sam2).__name__)"
INSTALLED = f"""
    import os
    import subprocess
    import sys
    import sam2_fast.compat as compat

    def child(*options):
        command = [sys.executable, *options, "-c", {CHILD!r}]
        return subprocess.run(command, capture_output=True, text=True)

    os.environ.pop("PYTHONPATH", None)
    compat.install()
    print(child().stdout.strip(), child("-S").returncode)
    compat.uninstall()
    print("No module named 'sam2'" in child().stderr)
"""


def write(folder: Path, source: str) -> Path:
    path = folder / "program.py"
    path.write_text(textwrap.dedent(source))
    return path


@pytest.mark.field("B16")
@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_workers_of_a_pool_import_the_shim_and_the_program(tmp_path: Path, method: str) -> None:
    """Under spawn and forkserver, workers import the main module of the program again."""
    write(tmp_path, POOL)
    for target in (["program.py"], ["-m", "program"]):
        output = run([*SHIM, *target, method], tmp_path)
        expected = "('AliasModule', '__mp_main__', 3) <class 'sam2_fast.image.mask_table.MaskData'>"
        assert output.strip() == expected


@pytest.mark.field("B16")
@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_workers_of_a_data_loader_import_the_shim(tmp_path: Path, method: str) -> None:
    output = run([*SHIM, str(write(tmp_path, LOADER)), method], tmp_path)
    assert output.strip() == "[1.0, 4.0]"


def test_processes_of_torchrun_have_the_shim(tmp_path: Path) -> None:
    """As `torchrun -m sam2_fast.compat program.py`, and as its child."""
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", "1"]
    program = str(write(tmp_path, TORCHRUN))
    assert run([sys.executable, *launcher, *SHIM[1:], program], tmp_path).split() == [
        *("0", "AliasModule")
    ]
    assert run([*SHIM, *launcher, program], tmp_path).split() == ["0", "AliasModule"]


def test_install_reaches_child_processes_until_uninstall(tmp_path: Path) -> None:
    """With `-S` the start-up file is not read, but the shim's `sam2` is found nevertheless."""
    output = run([sys.executable, str(write(tmp_path, INSTALLED))], tmp_path)
    assert output.split() == ["AliasModule", "0", "True"]


def test_a_copy_beside_the_program_does_not_come_first_in_a_child(tmp_path: Path) -> None:
    """The folder of a child's script precedes PYTHONPATH."""
    (tmp_path / "sam2").mkdir()
    (tmp_path / "sam2" / "__init__.py").write_text((STUB.parent / "official.py").read_text())
    (tmp_path / "child.py").write_text(CHILD)
    parent = f"import subprocess, sys; subprocess.run([sys.executable, {'child.py'!r}], check=True)"
    output = run([*SHIM, "--replace-modified", "-c", parent], tmp_path)
    assert output.strip() == "AliasModule"


def test_the_start_up_file_that_ours_hides_is_run(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.customised = True\n")
    path = os.pathsep.join([str(STUB), str(tmp_path), str(ROOT)])
    for prefix, expected in ((sys.prefix, "True True"), ("another", "False True")):
        code = (
            "import sys; print(any('compat' in type(f).__module__ for f in sys.meta_path), "
            "sys.customised)"
        )
        variables = environment(**{children.PREFIX: prefix, "PYTHONPATH": path})
        output = subprocess.run(
            [sys.executable, "-c", code],
            env=variables,
            check=True,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert output.stdout.strip() == expected


@pytest.mark.parametrize("before", [None, "", "/a:/b"])
def test_uninstall_restores_the_environment(
    monkeypatch: pytest.MonkeyPatch, before: str | None
) -> None:
    forget_sam2(monkeypatch)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("PYTHONPATH", before or "")
    if before is None:
        monkeypatch.delenv("PYTHONPATH")
    variables, path = dict(os.environ), list(sys.path)
    compat.install()
    compat.install()
    assert os.environ["PYTHONPATH"].split(os.pathsep).count(str(STUB)) == 1
    assert sys.path[0] == path[0] and sys.path.count(str(STUB)) == 1
    compat.uninstall()
    assert sys.path == path
    variables.setdefault("PYTHONPATH", "")
    assert {**os.environ, "PYTHONPATH": os.environ.get("PYTHONPATH", "")} == variables
