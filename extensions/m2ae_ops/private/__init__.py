"""What the public functions are made of; nothing outside this package imports it, and anything may change."""
