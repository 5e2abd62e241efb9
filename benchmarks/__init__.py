"""Speed measurements: every claim about speed comes from a script here, its raw results lie in `results/`."""
