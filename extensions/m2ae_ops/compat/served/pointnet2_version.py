"""pointnet2_ops._version: the published version whose interface is served."""

__version__ = "3.0.0"
