"""The one exception of a build."""


class BuildError(RuntimeError):
    """The library cannot be built here; the message says why and, where it ran, where the compiler's output is."""
