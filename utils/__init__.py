"""Configuration, checkpoints, logs, seeds and process groups: what every room uses and what knows none of them."""
