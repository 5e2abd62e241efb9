"""Point-JEPA's published programs: `python -m pointjepa fit -c YAML`, and those of `tasks` and `eval`."""
