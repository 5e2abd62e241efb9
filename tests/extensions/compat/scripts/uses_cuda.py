"""The ways in which published code asks for CUDA; every one of them gives the CPU under --device cpu."""

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import torch.nn as nn
from torch.cuda.amp import GradScaler, autocast
from torch.nn import DataParallel as ImportedParallel
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

torch.cuda.set_device(0)
assert torch.cuda.is_available() and torch.cuda.device_count() == 1 and torch.cuda.current_device() == 0
torch.backends.cudnn.benchmark = True
torch.cuda.manual_seed(1)
first = torch.rand(3, device="cuda")
torch.cuda.manual_seed_all(1)
state = torch.cuda.get_rng_state()
assert torch.equal(first, torch.rand(3, device="cuda:0"))
torch.cuda.set_rng_state(state)
assert torch.equal(first, torch.rand(3, device=torch.device("cuda", 0)))
torch.manual_seed(1)
assert torch.equal(first, torch.rand(3))

# Tensors.
x = torch.from_numpy(np.ones((4, 3), dtype=np.float32))
tensors = [x.cuda(), x.cuda(0, non_blocking=True), x.to("cuda"), x.to(0), x.to(torch.device("cuda:0"), torch.float64)]
tensors += [
    x.to(device="cuda", non_blocking=True),
    x.pin_memory(),
    torch.tensor([1.0], device="cuda"),
    x.to(x),
    x.half(),
]
tensors += [torch.arange(5, device="cuda"), torch.zeros_like(x, device="cuda"), x.new_zeros(3, device="cuda")]
tensors += [torch.cuda.FloatTensor(2, 3), torch.cuda.LongTensor([1, 2]), x.type(torch.cuda.DoubleTensor)]
tensors += [x.type("torch.cuda.HalfTensor"), torch.randperm(4, generator=torch.Generator(device="cuda"), device="cuda")]
assert all(tensor.device.type == "cpu" for tensor in tensors)
assert tensors[4].dtype == torch.float64 and x.type() == "torch.FloatTensor"
assert isinstance(torch.default_generator, torch.Generator)
assert torch.zeros(2, device="meta").device.type == "meta"

# Training, with and without mixed precision.
model = nn.DataParallel(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).cuda(), device_ids=[0, 1]).cuda()
assert ImportedParallel is nn.DataParallel and next(iter(model.state_dict())) == "module.0.weight"
model = nn.SyncBatchNorm.convert_sync_batchnorm(model).to("cuda")
optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
scaler = GradScaler(init_scale=1024.0)
loader = DataLoader(TensorDataset(x), batch_size=2, pin_memory=True, num_workers=0)
start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
start.record()
for (batch,) in loader:
    with autocast():
        out = checkpoint(model, batch.cuda(non_blocking=True), use_reentrant=False)
        loss = out.float().square().mean()
    assert torch.is_autocast_enabled("cpu") is False
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    nn.utils.clip_grad_norm_(model.parameters(), 10)
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()
end.record()
torch.cuda.synchronize()
torch.cuda.empty_cache()
assert start.elapsed_time(end) > 0 and torch.cuda.max_memory_allocated() / 2**20 == 0
with torch.autocast("cuda", dtype=torch.float16):
    assert model.module[0](x.cuda()).dtype == torch.bfloat16
with torch.autocast(device_type="cuda", enabled=False):
    assert model.module[0](x).dtype == torch.float32
with torch.cuda.device(0), torch.cuda.stream(torch.cuda.Stream()):
    torch.cuda.current_stream().synchronize()

# Checkpoints.
with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "ckpt.pth"
    torch.save({"base_model": model.state_dict()}, path)
    for where in (
        "cuda:0",
        "cpu",
        {"cuda:0": "cuda:1"},
        torch.device("cuda"),
        lambda storage, loc: storage.cuda(0),
        None,
    ):
        assert torch.load(path, map_location=where)["base_model"]["module.0.weight"].device.type == "cpu"

    # An archive, as CLIP's is: TorchScript, with functions that were mapped before it was compiled.
    @torch.jit.script
    def shift(values):
        return values + torch.ones([3]) * torch.arange(3)

    class Tower(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1 = nn.Linear(3, 3)

        def forward(self, values):
            return torch.zeros_like(values) + shift(self.conv1(values))

    torch.jit.save(torch.jit.script(Tower().cuda()), folder + "/clip.pt")
    archive = torch.jit.load(folder + "/clip.pt", map_location="cuda:0").eval().cuda()
    assert archive(x.cuda()).shape == (4, 3) and "conv1.weight" in archive.state_dict()
    traced = torch.jit.trace(lambda: torch.ones([]).to(torch.device("cuda")), example_inputs=[])
    assert traced().device.type == "cpu"

# What the script is told, and what PyTorch's own code is told.
assert x.is_cuda and x.cuda().is_cuda and not torch.zeros(2, device="meta").is_cuda
assert isinstance(torch.backends.cudnn.version(), int) or torch.backends.cudnn.version() is None
compiled = torch.compile(lambda values: values.cuda().sin() + torch.arange(3, device=values.device), backend="eager")
assert torch.equal(compiled(x), x.sin() + torch.arange(3))
with torch.device("cuda"):
    assert torch.zeros(2).device.type == "cpu"
with torch.device("meta"):
    assert torch.zeros(2).device.type == "meta"
assert torch.fft.fftfreq(4, device="cuda").device.type == "cpu"
assert torch.equal(nn.parallel.data_parallel(nn.Identity(), x, [0, 1]), x)
for call in (torch.cuda.CUDAGraph, lambda: torch.UntypedStorage(4, device="cuda")):
    try:
        call()
    except RuntimeError as error:
        assert "has no counterpart on the CPU" in str(error) and "docs/published-code.md" in str(error)
    else:
        raise AssertionError("this cannot run")

# One process of a distributed run.
if torch.distributed.is_available():
    with tempfile.TemporaryDirectory() as folder:
        torch.distributed.init_process_group(backend="nccl", init_method=f"file://{folder}/x", rank=0, world_size=1)
        wrapped = nn.parallel.DistributedDataParallel(nn.Linear(3, 2).cuda(), device_ids=[0], output_device=0)
        wrapped(x.cuda()).sum().backward()
        torch.distributed.destroy_process_group()
print("mapped", *sys.argv[1:])
