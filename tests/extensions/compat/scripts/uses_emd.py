"""The import and call forms of the auction. Argument: cpu or cuda."""

import sys

import emd
import emd_module
import torch
from emd.emd_module import emdFunction

from extensions.emd import emdModule

device = sys.argv[1]
torch.manual_seed(0)
a, b = torch.rand(2, 32, 3, device=device, requires_grad=True), torch.rand(2, 32, 3, device=device)
dist, assignment = emd_module.emdModule()(a, b, 0.005, 50)
assert emd_module.emdModule is emdModule and assignment.dtype == torch.int32
matched = torch.stack([b[i, assignment[i].long()] for i in range(2)])
assert torch.allclose(dist, (a - matched).square().sum(-1))
torch.sqrt(dist).mean(1).mean().backward()
assert a.grad.isfinite().all() and a.grad.abs().sum() > 0
assert torch.equal(emdFunction.apply(a, b, 0.005, 50)[0], dist)

# The raw calls, with the work tensors that the caller allocates.
filled, index = torch.zeros(2, 32, device=device), torch.zeros(2, 32, dtype=torch.int32, device=device)
work = [torch.zeros(2, 32, device=device) for _ in range(10)]
assert emd.forward(a.detach(), b, filled, index, *work, 0.005, 50) == 1
assert torch.equal(filled, dist) and torch.equal(index, assignment)
grad = torch.zeros(2, 32, 3, device=device)
emd.backward(a.detach(), b, grad, torch.ones_like(filled), index)
assert torch.allclose(grad, 2 * (a - matched))
print("matched on", device)
