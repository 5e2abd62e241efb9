"""The register of data sets: NAME in a YAML file -> reader and its declared keys."""

from utils.registry import Registry

DATASETS = Registry("data set")
