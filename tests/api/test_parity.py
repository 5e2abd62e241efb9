"""Encoders through `create_model`, from files in the published layout, give the numbers of the original networks."""

from pathlib import Path

import numpy as np
import pytest
import torch

import api
from tests.parity.fill import fill_state_dict

DATA = Path(__file__).parent.parent / "parity" / "data"
CLOSE, LOOSE = {"rtol": 1e-4, "atol": 4e-5}, {"rtol": 1e-3, "atol": 1e-4}
SCAN = {"num_group": 128, "cls_dim": 15}

# name of the model, file of the reference, its features of whole clouds, bounds of the parity tests, keys
ENCODERS = [
    ("point_m2ae.pretrain", "point-m2ae/svm_features", "features", LOOSE, {"legacy": True}),
    ("i2p_mae.pretrain", "i2p-mae/svm_features", "features", LOOSE, {"legacy": True}),
    ("point_mae.pretrain", "point-mae/svm_features", "feat_mean_plus_max", CLOSE, {}),
    ("pcp_mae.pretrain", "pcp-mae/svm_features", "feat_mean_plus_max", CLOSE, {}),
    ("point_m2ae.classify.modelnet40", "point-m2ae/finetune_Point_M2AE_ModelNet40", "pooled", LOOSE, {}),
    ("point_m2ae.classify.scanobjectnn", "point-m2ae/finetune_Point_M2AE_ScanObjectNN", "pooled", LOOSE, {}),
    ("i2p_mae.classify.modelnet40", "i2p-mae/finetune_I2P_MAE_ModelNet40", "pooled", LOOSE, {}),
    ("point_mae.classify", "point-mae/finetune_scan_hardest", "cls_feature", CLOSE, SCAN),
    ("pcp_mae.classify", "pcp-mae/finetune_modelnet", "cls_feature", CLOSE, {}),
]
CLASSIFIERS = [
    ("inter_mae.classify", "inter-mae/finetune_modelnet", {}),
    ("gm3d.classify", "gm3d/finetune_scan_hardest", SCAN),
]


def reference(name):
    found = dict(np.load(DATA / f"{name}.npz"))
    return found, torch.from_numpy(found["points" if "points" in found else "pts"])


def from_a_file(name, folder, keys):
    """Return the model with the weights of the reference, loaded from a file as it is published."""
    model = api.create_model(name, **keys)
    weights = fill_state_dict({key: value for key, value in model.state_dict().items() if "online_model" not in key})
    file = folder / "published.pth"
    torch.save({"base_model": {f"module.{key}": value for key, value in weights.items()}}, file)
    loaded = api.create_model(name, weights=file, **keys)
    file.unlink()
    return loaded


@pytest.mark.parametrize(("name", "file", "key", "close", "keys"), ENCODERS, ids=[row[0] for row in ENCODERS])
def test_features_of_whole_clouds(name, file, key, close, keys, tmp_path):
    expected, points = reference(file)
    model = from_a_file(name, tmp_path, keys)
    with torch.no_grad():
        features = model.encode(points)
    np.testing.assert_allclose(features.numpy(), expected[key], **close)


@pytest.mark.parametrize(("name", "file", "keys"), CLASSIFIERS, ids=[row[0] for row in CLASSIFIERS])
def test_logits_where_the_reference_has_no_features(name, file, keys, tmp_path):
    expected, points = reference(file)
    model = from_a_file(name, tmp_path, keys)
    with torch.no_grad():
        logits = model.head(model.encode(points))
    np.testing.assert_allclose(logits.numpy(), expected["logits"], rtol=1e-4, atol=2e-5)


def test_tokens_of_gm3d(tmp_path):
    expected, points = reference("gm3d/pretrain_usual")
    model = from_a_file("gm3d.pretrain", tmp_path, {"guidance": {"mode": "usual"}})
    with torch.no_grad():
        tokens = model.patch_tokens(points)
    np.testing.assert_allclose(tokens[:, :8].numpy(), expected["ema_features_head"], rtol=1e-4, atol=2e-5)


def test_tokens_of_point_jepa(tmp_path):
    """The reference began farthest point sampling where it had drawn."""
    expected, points = reference("point-jepa/svm_features")
    model = from_a_file("point_jepa.pretrain", tmp_path, {})
    starts = torch.from_numpy(expected["fps_start"]).long()
    with torch.no_grad():
        tokens = model.patch_tokens(None, model.group(model.transform(points), starts=starts))
    taken = tokens[:, :: int(expected["tokens_stride"])]
    np.testing.assert_allclose(taken.numpy(), expected["tokens"], rtol=1e-4, atol=2e-5)
    pooled = torch.cat([tokens.amax(1), tokens.mean(1)], dim=-1)
    np.testing.assert_allclose(pooled.numpy(), expected["feat_max_mean"], rtol=1e-4, atol=2e-5)


def test_parts_of_point_m2ae(tmp_path):
    expected, points = reference("point-m2ae/partseg")
    model = from_a_file("point_m2ae.segment", tmp_path, {})
    with torch.no_grad():
        parts = model.predict(points, torch.from_numpy(expected["category"]).long())
    assert (parts.numpy() == expected["argmax"]).mean() > 0.999  # near ties may turn
