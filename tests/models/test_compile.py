"""`torch.compile(..., fullgraph=True)` of encoders and classifiers in evaluation mode: one graph, and what eager gives."""

import pytest
import torch

from tests.models.debug_models import METHODS, clouds, small


def check(function, backend):
    torch.compiler.reset()
    compiled = torch.compile(function, fullgraph=True, backend=backend)
    with torch.no_grad():
        assert torch.allclose(compiled(clouds(2)), function(clouds(2)), atol=1e-4)


@pytest.mark.parametrize(
    "method", ["point-mae", *(pytest.param(m, marks=pytest.mark.slow) for m in METHODS[:1] + METHODS[2:])]
)
def test_an_encoder_is_one_graph(method):
    check(small(method).model.encode, "eager")


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_a_classifier_is_one_graph(method):
    check(small(method, "classifier").model, "eager")


@pytest.mark.slow
def test_inductor_compiles_the_hierarchy():
    check(small("point-m2ae").model.encode, "inductor")
