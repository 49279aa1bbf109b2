"""``python -m worker`` on a machine that is not what it is told to be."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--torch-device", "cuda:99"], "CUDA devices here: see `nvidia-smi`"),
        (["--torch-device", "abacus"], "torch_device is 'abacus': String should match pattern '^(cpu|cuda"),
        (["--threads", "256"], "threads is 256; this process may use"),
        (["--threads", "10000"], "device_threads is 10000: Input should be less than or equal to 256"),
        (["--device", "lab pi"], "device is 'lab pi': String should match pattern"),
    ],
)
def test_a_worker_of_what_is_not_here_does_not_start(options: list[str], words: str, tmp_path: Path) -> None:
    environment = {**os.environ, "WATTLE_DATA_DIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    found = subprocess.run([sys.executable, "-m", "worker", *options], env=environment, capture_output=True, text=True)
    assert found.returncode == 1
    assert words in found.stderr
    assert list(tmp_path.iterdir()) == []
