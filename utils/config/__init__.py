"""From YAML files, flags and dataclasses to one resolved configuration."""
