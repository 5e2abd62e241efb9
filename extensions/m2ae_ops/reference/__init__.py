"""Plain PyTorch form of every op: the fallback without a compiled library and the oracle of the tests.

Nothing here validates its arguments; the public wrappers one level up do. Every function runs on any device.
"""
