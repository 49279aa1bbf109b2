"""What layers cost on this device: meters, timing, sweeps over layer shapes, anchors, cost tables.  ``python -m profiler`` works alone.

A sweep executes more distinct layer shapes than oneDNN keeps compiled kernels for (1024 by default), after which every call would
compile its kernel again.  oneDNN reads its limit when it runs for the first time, so it is raised here, before torch is imported.
A process whose torch has run a layer already keeps the limit it had.
"""

import os

os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "16384")
