"""A process on a leash dies when its parent dies, also by ``kill -9``, so that nothing of a job outlives who answers for it.

    python -m worker.leash PARENT_PID COMMAND...     # puts itself on the leash, then becomes COMMAND

The leash is Linux's PR_SET_PDEATHSIG.  It is tied to the *thread* that started the process: start leashed processes from a thread
that lives as long as they may.  It survives exec and is not inherited by children.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Sequence

_PR_SET_PDEATHSIG = 1


def die_with(parent_pid: int) -> None:
    """Let the kernel kill this process when its parent dies; exit at once if that parent is gone already."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed; Wattle's workers need Linux")
    if os.getppid() != parent_pid:  # it died between our start and the call above: the signal will never come
        sys.exit(f"parent {parent_pid} is gone")


def leashed(command: Sequence[str]) -> list[str]:
    """The command line that runs ``command`` on the leash of the calling process."""
    return [sys.executable, "-m", "worker.leash", str(os.getpid()), *command]


if __name__ == "__main__":
    die_with(int(sys.argv[1]))
    os.execv(sys.argv[2], sys.argv[2:])  # noqa: S606 - becomes the command it was asked to guard
