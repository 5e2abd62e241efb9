"""Pictures and their networks: a frozen teacher, an image branch, their weights."""
