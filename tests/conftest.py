"""The NVML stub, built once by gcc; a fresh world of GPUs for each test, under the real pynvml."""

import importlib.util
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


def _stub_module() -> ModuleType:
    """benchmarks/ is no package that tests could import."""
    path = Path(__file__).parents[1] / "benchmarks" / "nvml_stub.py"
    spec = importlib.util.spec_from_file_location("nvml_stub", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def nvml_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("gcc") is None:
        pytest.skip("the NVML stub is built by gcc, which is not installed")
    library: Path = _stub_module().build(tmp_path_factory.mktemp("nvml"))
    return library


@pytest.fixture
def stub(nvml_library: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """One GPU at 30 W whose counter ticks every 100 ms.  See benchmarks/nvml_stub.py."""
    for name in ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"):
        monkeypatch.delenv(name, raising=False)
    import pynvml

    yield _stub_module().NvmlStub(nvml_library)
    pynvml.nvmlLib = None
    pynvml._nvmlGetFunctionPointer_cache.clear()
