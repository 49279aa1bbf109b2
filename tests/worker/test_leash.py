"""A leashed process dies with its parent, also when the parent is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

from worker.processes import Identity


def test_dies_with_a_killed_parent() -> None:
    start = "process = subprocess.Popen(leashed(['/bin/sleep', '60'])); print(process.pid, flush=True); time.sleep(60)"
    code = f"import subprocess, time; from worker.leash import leashed; {start}"
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    deadline = time.monotonic() + 10
    while not os.readlink(f"/proc/{child}/exe").endswith("sleep"):  # on its leash from before it becomes the command
        assert time.monotonic() < deadline
        time.sleep(0.01)
    parent.kill()
    parent.wait()
    while Identity.of(child) is not None:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_ends_at_once_when_the_parent_is_gone() -> None:
    gone = subprocess.run([sys.executable, "-m", "worker.leash", "1", "/bin/sleep", "60"], stderr=subprocess.PIPE, text=True, timeout=20)
    assert gone.returncode == 1
    assert "parent 1 is gone" in gone.stderr


def test_the_command_gets_signals_itself() -> None:
    from worker.leash import leashed

    process = subprocess.Popen(leashed(["/bin/sleep", "60"]))
    time.sleep(0.5)
    process.terminate()
    assert process.wait(10) == -signal.SIGTERM
