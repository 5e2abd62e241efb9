"""The modules that `../hook.py` serves under published names, one file each."""
