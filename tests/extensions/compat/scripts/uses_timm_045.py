"""timm 0.4.5, which the family pins: its import compiles TorchScript, and its scheduler has the old keys."""

import timm
import torch
from timm.models.layers import DropPath, trunc_normal_
from timm.models.vision_transformer import Block
from timm.scheduler import CosineLRScheduler

assert timm.__version__ == "0.4.5"
layer = nn_block = Block(dim=24, num_heads=3).cuda()
weight = trunc_normal_(torch.empty(4, 4, device="cuda"), std=0.02)
assert weight.abs().max() < 0.2 and DropPath(0.1).eval()(weight) is weight
nn_block(torch.rand(2, 5, 24, device="cuda")).sum().backward()
optimizer = torch.optim.AdamW(layer.parameters(), lr=0.001)
scheduler = CosineLRScheduler(
    optimizer, t_initial=300, t_mul=1, lr_min=1e-6, decay_rate=0.1, warmup_lr_init=1e-6, warmup_t=10, cycle_limit=1,
    t_in_epochs=True,
)  # fmt: skip
scheduler.step(10)
optimizer.step()
assert abs(optimizer.param_groups[0]["lr"] - 0.99726 * 0.001) < 1e-8
print("timm", timm.__version__)
