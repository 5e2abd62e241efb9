"""The ops against what people use: every row of the table, its peers, and how they are timed."""
