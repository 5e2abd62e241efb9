"""What a gallery shows of methods that make more than points."""

import torch

from datasets import build_dataset
from tests.models.test_contract import build
from tools.gallery_items import CENTERS, PREDICTED, reconstruction_gallery


def test_predicted_centers_stand_next_to_the_true_ones(monkeypatch):
    """Visible centres are the true ones, hidden ones what the model says; other methods have no such cell."""
    clouds, model = build_dataset({"NAME": "Synthetic", "clouds": 20, "N_POINTS": 256}), build("PCP_MAE")
    monkeypatch.setattr("models.pcp_mae.centers_of", lambda embedding: torch.full((len(embedding), 3), 0.25))
    for item in reconstruction_gallery(model, clouds, 0, torch.device("cpu"), count=2):
        true, believed = item.clouds[CENTERS], item.clouds[PREDICTED]
        hidden, of_believed = item.values[CENTERS] == 1, item.values[PREDICTED] == 1
        assert hidden.sum() == of_believed.sum() == model.masked_count
        assert (believed[~of_believed] == true[~hidden]).all() and (believed[of_believed] == 0.25).all()
    (item,) = reconstruction_gallery(build("Point_MAE"), clouds, 0, torch.device("cpu"), count=1)
    assert PREDICTED not in item.clouds
