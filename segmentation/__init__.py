"""Part segmentation: its own runner, metrics and published command; the models are those of `models/segmenter.py`."""
