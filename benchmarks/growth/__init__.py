"""Does growing pay?  The experiments behind docs/growth.md: ``python -m benchmarks.growth``, or ``make bench-growth``.

Everything that grows, scores or selects is the product's own library; here are tasks, arms, statistics and the page.  A result is one
line of JSON per arm and seed, so a stopped run goes on where it was.
"""
