"""The registry of models: each NAME declares its configuration dataclass."""

from utils.registry import Registry

MODELS = Registry("model")
