"""Keys of models whose values no model can have: a message that names the key, before anything is built."""

import pytest

from models import build_model

HIERARCHY = {
    "num_heads": (0, -1, 1 << 40),
    "num_groups": ([0, 8, 4], [1 << 40, 8, 4]),
    "group_sizes": ([-1, 8, 8],),
    "encoder_dims": ([0, 192, 384],),
    "encoder_depths": ([-1, 5, 5], [1 << 40, 5, 5]),
    "embed_widths": ([128, 0, 512],),
    "decoder_depths": ([1, -1],),
    "drop_path_rate": (-0.1, 1.0),
}
SINGLE_SCALE = {"depth": (0, 1 << 40), "num_heads": (0, -6), "embed_widths": ([0, 1, 1],), "drop_path_rate": (1.5,)}


@pytest.mark.parametrize("key, value", [(key, value) for key, values in HIERARCHY.items() for value in values])
def test_keys_of_the_hierarchy(key, value):
    with pytest.raises(ValueError, match=rf"model\.{key}: "):
        build_model({"NAME": "Point_M2AE", key: value})


@pytest.mark.parametrize("key, value", [(key, value) for key, values in SINGLE_SCALE.items() for value in values])
def test_keys_of_one_scale(key, value):
    with pytest.raises(ValueError, match=rf"{key}: "):
        build_model({"NAME": "Point_MAE", "transformer_config": {key: value}})
