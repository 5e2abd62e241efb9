"""A traced model as an ONNX file, and what onnxruntime makes of one."""

import json

import numpy as np
import torch

from tools.export.graph import METADATA, OUTPUTS, Traced, cannot, quietly
from utils.errors import UserError

LARGEST = 2**31 - 1  # bytes of a file of this format


def pack_onnx(traced: Traced) -> bytes:
    """Return the ONNX file of a traced model.

    Raises:
        UserError: a package is missing, an op has no form in ONNX, or the model is too large for one file.
    """
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"--to onnx needs the package {error.name}: pip install onnx onnxscript; or take --to pt2"
        ) from error
    try:
        with quietly():
            outputs = OUTPUTS[traced.module.part]
            made = torch.onnx.export(
                traced.program, dynamo=True, verbose=False, input_names=traced.names, output_names=list(outputs)
            )
    except Exception as error:  # the converter meets what it cannot convert with anything
        cause = error.__cause__ or error
        raise cannot(traced.module, cause if isinstance(cause, Exception) else error) from error
    made.model.metadata_props[METADATA] = json.dumps(traced.about)
    data = made.model_proto.SerializeToString()
    if len(data) > LARGEST:
        raise UserError(
            f"--to onnx: the model has {len(data):,} bytes, and a file of ONNX at most {LARGEST:,}; take --to pt2"
        )
    return data


def run_onnx(data: bytes, inputs: list[torch.Tensor]) -> list[np.ndarray] | None:
    """Run an ONNX file on the CPU; None where onnxruntime is not installed."""
    try:
        import onnxruntime
    except ImportError:
        return None
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]
    return session.run(None, {name: tensor.numpy() for name, tensor in zip(names, inputs, strict=True)})
