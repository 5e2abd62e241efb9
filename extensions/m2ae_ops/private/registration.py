"""Declare the ops of this package to PyTorch, once per process."""

from collections.abc import Callable

import torch

from ..loader import has_kernel

NAMESPACE = "m2ae"
# A fragment may be opened by several copies of this package (`extensions.m2ae_ops` and an installed `m2ae_ops`) and by
# the compiled library, in any order. PyTorch unregisters what a Library holds when that object dies, so it lives here.
_LIBRARY = torch.library.Library(NAMESPACE, "FRAGMENT")
REFERENCES: dict[str, Callable] = {}  # op -> its plain form


def register(
    name: str,
    schema: str,
    *,
    reference: Callable,
    fake: Callable,
    backward: Callable | None = None,
    setup_context: Callable | None = None,
    cuda: Callable | None = None,
) -> None:
    """Declare `m2ae::<name>` with its schema, reference, fake kernel and gradient, and a form of its own for CUDA tensors.

    The reference serves every device without a compiled kernel. Its first call on the CPU is the moment at which the
    compiled library is looked for, so that importing this package builds nothing.

    Raises:
        ImportError: another copy of this package has declared the op with a different schema.
    """
    REFERENCES[name] = reference
    qualified = f"{NAMESPACE}::{name}"
    declared = torch._C._jit_get_schemas_for_operator(qualified)
    if declared:
        expected = torch._C.parse_schema(qualified + schema)
        if str(declared[0]) != str(expected):
            raise ImportError(f"{declared[0]} was declared by another version of m2ae_ops; this one has {expected}")
        return
    _LIBRARY.define(name + schema)

    def reference_kernel(*args):
        # All ops take a tensor first. Once the library is loaded, the dispatcher no longer comes here for its devices.
        if has_kernel(qualified, args[0].device):
            return getattr(getattr(torch.ops, NAMESPACE), name)(*args)
        return reference(*args)

    _LIBRARY.impl(name, reference_kernel, "CompositeExplicitAutograd")
    if cuda is not None:
        _LIBRARY.impl(name, cuda, "CUDA")
    torch.library.register_fake(qualified, fake, lib=_LIBRARY)
    if backward is not None:
        torch.library.register_autograd(qualified, backward, setup_context=setup_context, lib=_LIBRARY)
