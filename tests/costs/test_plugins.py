"""Operators and scorers of other packages: known by name without an import, usable by name, refused with package and remedy."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PLUGIN = '''
from growth.operators.split import InTwo

class Mine(InTwo):
    """As the split in two, under another name."""

class Broken:
    def __init__(self):
        raise RuntimeError("out of order")
'''


def install(folder: Path, declared: str) -> None:
    (folder / "my_plugin.py").write_text(PLUGIN)
    package = folder / "my_package-1.0.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1.0\n")
    (package / "entry_points.txt").write_text(declared)


def run(folder: Path, code: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(folder), str(Path(__file__).parents[2])])
    return subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=120, check=False
    )


def test_an_installed_operator_is_known_to_specs_without_torch_and_to_the_library(tmp_path: Path) -> None:
    install(tmp_path, "[wattle.operators]\nmine = my_plugin:Mine\n")
    spec = "import sys; from store.spec import GrowthSpec; print(GrowthSpec(operators=['mine']).operators, 'torch' in sys.modules)"
    assert run(tmp_path, spec).stdout == "('mine',) False\n"
    library = "from growth.operators import OPERATORS; print(type(OPERATORS['mine']).__name__, OPERATORS['mine'].claims_gain)"
    assert run(tmp_path, library).stdout == "Mine True\n"


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        ("[wattle.operators]\nsplit = my_plugin:Mine\n", "my-package declares 'split' in wattle.operators, which Wattle has itself"),
        ("[wattle.operators]\nmine = my_plugin:Broken\n", "'mine' of my-package in wattle.operators can't be loaded (out of order); mend"),
        ("[wattle.scorers]\nmine = no_such_module:Mine\n", "'mine' of my-package in wattle.scorers can't be loaded (No module named"),
    ],
)
def test_one_that_can_not_be_used_is_named_with_its_package(tmp_path: Path, declared: str, message: str) -> None:
    install(tmp_path, declared)
    result = run(tmp_path, "import growth.operators, growth.scorers")
    assert result.returncode == 1
    assert message in result.stderr


def test_a_name_that_nobody_brings_is_refused(tmp_path: Path) -> None:
    result = run(tmp_path, "from store.spec import GrowthSpec; GrowthSpec(scorer='mine')")
    assert "'mine' is none of the scorers; choose from splitting, rayleigh, exact, random, or install the package" in result.stderr
