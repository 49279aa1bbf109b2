"""What a network is, as data, and what its layers cost: shapes, families, counts, cost tables. Pure Python, no torch."""
