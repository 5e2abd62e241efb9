"""What detectors are made of: boxes, layers, the set criterion."""
