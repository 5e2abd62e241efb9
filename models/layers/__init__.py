"""Parts that every method is built from."""
