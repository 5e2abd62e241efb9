"""What some methods need besides the model while they pre-train: teachers and image branches (`base.py`), one file a method."""
