"""All benchmarks, one after the other: each prints a table and writes JSON to benchmarks/results/.  `make bench`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parent
NAMES = ("splitting", "selection", "latency", "service", "submit", "energy", "lookup", "devices")


def main() -> int:
    results = FOLDER / "results"
    results.mkdir(exist_ok=True)
    failed = []
    for name in sys.argv[1:] or NAMES:
        print(f"\n== {name}", flush=True)
        # As a module: a script's own folder comes first on its path, and `benchmarks/growth` would hide the library.
        command = [sys.executable, "-m", f"benchmarks.{name}", "--output", str(results / f"{name}.json")]
        if subprocess.run(command, check=False, cwd=FOLDER.parent).returncode:
            failed.append(name)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
