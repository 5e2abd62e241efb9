"""Object detection in scenes: its runner, evaluation and report; the models are those of `models/detr.py`."""
