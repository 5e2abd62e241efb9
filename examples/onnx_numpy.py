"""Features of a cloud by an exported encoder, with NumPy and onnxruntime alone: onnx_numpy.py ENCODER.onnx CLOUD.npy FEATURES.npy."""

import json
import sys

import numpy as np
import onnxruntime


def sample(points, count, skip_near_origin):
    """Choose points (N, 3) by farthest point sampling, the first one first: indices (count,)."""
    distance = np.full(len(points), 1e10, np.float32)
    if skip_near_origin:
        distance[(points**2).sum(1) <= 1e-3] = -1
    chosen = [0]
    while len(chosen) < count:
        distance = np.minimum(distance, ((points - points[chosen[-1]]) ** 2).sum(1))
        chosen.append(distance.argmax())
    return np.array(chosen)


def group(points, about):
    """Return what the encoder takes of points (N, 3): the finest patches, the centres of all scales, who is in the coarser groups."""
    below, centers, members = points, [], []
    for count, size in zip(about["num_groups"], about["group_sizes"], strict=True):
        centers.append(below[sample(below, count, about["skip_near_origin"])])
        distance = ((centers[-1][:, None] - below) ** 2).sum(-1)
        members.append(distance.argsort(1, kind="stable")[:, :size])
        below = centers[-1]
    return [points[members[0]] - centers[0][:, None], *centers, *members[1:]]


def encode(path, points):
    """Return the features (C,) of a cloud (N, 3), y up, which is placed and thinned as in training."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    about = json.loads(session.get_modelmeta().custom_metadata_map["m2ae"])
    if about["placing"] != "stored":
        points = points - points.mean(0, dtype=np.float64)
    if about["placing"] == "sphere":
        points = points / np.linalg.norm(points, axis=1).max()
    points = points.astype(np.float32)
    if len(points) > about["points"]:
        points = points[sample(points, about["points"], True)]
    tensors = [tensor[None] for tensor in group(points, about)]
    return session.run(["features"], dict(zip(about["inputs"], tensors, strict=True)))[0][0]


if __name__ == "__main__":
    np.save(sys.argv[3], encode(sys.argv[1], np.load(sys.argv[2])))
