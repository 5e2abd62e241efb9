"""The parts of a run's report: reading the metrics, drawing charts, tables, clouds, and the page itself."""
