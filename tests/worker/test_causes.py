"""Each failure gets a cause of the store's list, and a sentence that says what to do."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import get_args

import pytest
import torch

from costs.table import NoCost
from growth.training import NotANumber
from store.database import DatabaseUnavailable
from store.jobs import Cause
from store.problems import InvalidSpec, Problem
from worker.causes import explain

FAILURES = [
    (InvalidSpec([Problem("data.root", "x", None, "make one", "there is no folder x; make one")]), "invalid_data", "make one"),
    (NotANumber("the loss is nan; lower the learning rate"), "not_a_number", "lower the learning rate"),
    (NoCost("no latency; run `wattle profile`"), "device_error", "wattle profile"),
    (MemoryError(), "out_of_memory", "lower training.batch_size"),
    (torch.OutOfMemoryError("CUDA out of memory"), "out_of_memory", "lower training.batch_size"),
    (OSError(errno.ENOSPC, "No space left on device"), "disk_full", "WATTLE_DATA_DIR"),
    (OSError(errno.EFBIG, "File too large"), "disk_full", "WATTLE_DATA_DIR"),
    (DatabaseUnavailable("the database did not answer: database or disk is full"), "disk_full", "WATTLE_DATA_DIR"),
    (KeyError("weight"), "internal", "log"),
]


@pytest.mark.parametrize(("error", "cause", "word"), FAILURES)
def test_failures(error: Exception, cause: str, word: str, tmp_path: Path) -> None:
    found, sentence = explain(error, tmp_path)
    assert found == cause
    assert found in get_args(Cause)
    assert word in sentence


def test_torch_says_out_of_memory_in_words_that_are_known(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert explain(caught.value, tmp_path)[0] == "out_of_memory"
