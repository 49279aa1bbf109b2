import gc
import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from costs.table import Setting
from profiler.device import check, cores, fingerprint, fingerprint_id, pin_allocator, ready_to_measure


def test_a_fingerprint_is_plain_data_and_repeats() -> None:
    first, second = fingerprint(1), fingerprint(1)
    assert first == second
    assert json.loads(json.dumps(first)) == first
    assert first["torch"] == torch.__version__
    assert first["cores"] == cores()
    assert first["allocator"] in ("glibc pinned", "default")
    assert {"cpu", "os", "python", "governor", "virtualised"} <= first.keys()


def test_the_fingerprint_id_changes_with_every_part() -> None:
    base = fingerprint(1)
    assert fingerprint_id(base) == fingerprint_id(dict(reversed(base.items())))
    ids = {fingerprint_id({**base, part: "other"}) for part in base}
    assert len(ids | {fingerprint_id(base)}) == len(base) + 1


def test_measuring_state_is_restored_even_after_an_error() -> None:
    threads, collecting = torch.get_num_threads(), gc.isenabled()
    during = []

    def fail() -> None:
        with ready_to_measure(Setting(threads=1)):
            during.append((torch.get_num_threads(), gc.isenabled(), torch.is_inference_mode_enabled()))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert during == [(1, False, True)]
    assert (torch.get_num_threads(), gc.isenabled(), torch.is_inference_mode_enabled()) == (threads, collecting, False)


def test_without_mallopt_the_allocator_is_reported_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("profiler.device.ctypes.CDLL", lambda _name: object())
    assert pin_allocator.__wrapped__() == "default"


def test_the_package_itself_is_free_of_torch_and_raises_the_kernel_cache_before_it() -> None:
    code = "import profiler, os, sys; print('torch' in sys.modules, os.environ['ONEDNN_PRIMITIVE_CACHE_CAPACITY'])"
    environment = {k: v for k, v in os.environ.items() if k != "ONEDNN_PRIMITIVE_CACHE_CAPACITY"}
    output = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True).stdout
    assert output.split() == ["False", "16384"]


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        (replace(Setting(), batch=0), "batch is 0"),
        (replace(Setting(), threads=10_000), "threads is 10000; this process may use"),
        (replace(Setting(), dtype="float16"), "only float32"),
        (replace(Setting(), layout="blocked"), "contiguous, channels_last"),
    ],
)
def test_a_setting_that_cannot_be_measured_is_refused_with_a_remedy(setting: Setting, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        check(setting)
