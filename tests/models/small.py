"""A model small enough for tests."""

SMALL = {
    "NAME": "Point_M2AE",
    "num_groups": [32, 16, 8],
    "group_sizes": [8, 4, 4],
    "encoder_dims": [12, 24, 48],
    "encoder_depths": [1, 1, 1],
    "decoder_dims": [48, 24],
    "num_heads": 3,
    "drop_path_rate": 0.0,
}
