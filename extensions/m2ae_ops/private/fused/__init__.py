"""The fused mini-PointNet for a GPU, in Triton. Imported when it is first wanted: Triton takes a second to import.

`steps.py` puts it together, forward and backward, from eight functions; `launch.py` has them as kernels, `../../reference/embedding.py` in
plain PyTorch.
"""
