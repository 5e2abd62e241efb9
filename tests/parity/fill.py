"""Deterministic weight filling from key names.

Reference results are computed with weights that both sides can regenerate, so
no weight file has to be shipped.  Every tensor of a state dict is overwritten
from a random stream that is seeded only by the tensor's own key:

    rs = numpy.random.RandomState(zlib.crc32(key.encode()))
    N  = rs.standard_normal(shape)            (float64, cast to the tensor's dtype)

    not floating point (num_batches_tracked)  -> 0
    key ends with "running_var"               -> 1 + 0.1 * |N|
    key ends with "running_mean"              -> 0.1 * N
    at most 1-D, key ends with "weight"       -> 1 + 0.1 * N      (norm scales)
    any other tensor of at most 1-D           -> 0.02 * N         (biases, ...)
    all others                                -> N / sqrt(fan_in)
        where fan_in is the product of all sizes but the first one

Keys are the keys of the bare model, without a "module." prefix.  The order of
keys does not matter.  Aliased (tied) tensors: the key that comes last wins.
"""

import math
import zlib

import numpy as np
import torch


def values_for(key, shape):
    """The float64 array that belongs to one floating point tensor."""
    rs = np.random.RandomState(zlib.crc32(key.encode()))
    noise = rs.standard_normal(tuple(shape))
    if key.endswith("running_var"):
        return 1.0 + 0.1 * np.abs(noise)
    if key.endswith("running_mean"):
        return 0.1 * noise
    if len(shape) <= 1:
        return 1.0 + 0.1 * noise if key.endswith("weight") else 0.02 * noise
    return noise / math.sqrt(math.prod(shape[1:]))


@torch.no_grad()
def fill_state_dict(state_dict):
    """Overwrite every tensor in place (module.state_dict() shares storage); returns it."""
    for key, tensor in state_dict.items():
        if tensor.is_floating_point():
            fresh = np.asarray(values_for(key, tuple(tensor.shape)))
            tensor.copy_(torch.from_numpy(fresh).to(tensor.dtype))
        else:
            tensor.zero_()
    return state_dict
