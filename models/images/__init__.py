"""Pictures and the networks that look at them: a frozen teacher, an image branch, their weights."""
