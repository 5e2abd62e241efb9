"""Training steps, parameter groups and schedules of PCP-MAE against its published program (`data/pcp-mae`)."""

import numpy as np
import pytest
import torch

from datasets import DATASETS
from models import MODELS, build_model
from tests.parity.test_pcp_mae import published, read
from tests.parity.test_point_mae import check_after, filled
from tools.optim import build_optimizer, build_schedule, group_rate
from utils import ROOT
from utils.config.load import load_config

RECIPES = {
    "pretrain": "pre-training/pcp-mae",
    "finetune_scan": "fine-tuning/pcp-mae/scan_pb",
    "finetune_scan_hardest": "fine-tuning/pcp-mae/scan_pb",
    "finetune_modelnet": "fine-tuning/pcp-mae/modelnet40",
    "linear_modelnet": "fine-tuning/pcp-mae/modelnet40-linear",
    "fewshot": "few-shot/pcp-mae/modelnet40",
}


def recipe(name):
    return load_config(ROOT / "cfgs" / f"{RECIPES[name]}.yaml", models=MODELS, datasets=DATASETS)


@pytest.mark.parametrize("name", ["pretrain", "finetune_scan_hardest", "finetune_modelnet"])
def test_parameter_groups(name):
    """Head, no decay, decay: which tensors, in which order, rates and decay; the published empty head of pre-training is left out."""
    config = recipe(name)
    model = build_model(config.model)
    names = {id(parameter): key for key, parameter in model.named_parameters()}
    ours = build_optimizer(model, config.optimizer).param_groups
    theirs = [group for group in published("param_groups")[name] if group["tensors"]]
    assert len(ours) == len(theirs)
    for group, listed in zip(ours, theirs, strict=True):
        rate = config.optimizer.kwargs.lr * group.get("peak_scale", 1)
        assert (rate, group["weight_decay"]) == (pytest.approx(listed["lr"]), listed["weight_decay"])
        values = sum(parameter.numel() for parameter in group["params"])
        assert (len(group["params"]), values) == (listed["tensors"], listed["values"])
        if listed["params"]:
            assert [names[id(parameter)] for parameter in group["params"]] == listed["params"]


@pytest.mark.parametrize("name", ["pretrain", "finetune_scan", "finetune_modelnet", "linear_modelnet", "fewshot"])
def test_rates_of_the_groups(name):
    """Warm-up and floor are 1e-6 for both, the peak of the head is ten times as high."""
    config, ref = recipe(name), read("schedules")
    peak = config.optimizer.kwargs.lr
    schedule = build_schedule(config.scheduler, peak)
    for key, group in ((f"lr_{name}", {}), (f"lr_head_{name}", {"peak_scale": 10})):
        expected = ref[key][0] if key in ref else ()
        assert len(expected) or name == "pretrain"
        rates = [
            group_rate(group, schedule(e), lambda scale, e=e: build_schedule(config.scheduler, peak * scale)(e))
            for e in range(len(expected))
        ]
        np.testing.assert_allclose(rates, expected, rtol=1e-6)


def test_pretraining_steps():
    """Three AdamW steps in training mode, on stored batches and masks."""
    ref = read("train_steps_pretrain")
    model = filled(NAME="PCP_MAE", transformer_config={"drop_path_rate": 0.0}).train()
    optimizer = build_optimizer(model, recipe("pretrain").optimizer)
    bounds = {"loss_recon": (1e-5, 1e-4, 1e-3), "loss_center": (1e-5, 1e-4, 1e-4), "norm": (1e-4, 1e-3, 2e-3)}
    for step in range(3):
        optimizer.zero_grad()
        out = model(torch.from_numpy(ref["pts"][step]), torch.from_numpy(ref["mask"][step]).bool())
        for key, stored in (("loss_recon", "loss_recon"), ("loss_center", "loss_center_weighted")):
            assert out[key].item() == pytest.approx(float(ref[stored][step]), rel=bounds[key][step]), (key, step)
        out["loss"].backward()
        norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
        assert norm.item() == pytest.approx(float(ref["grad_norm"][step]), rel=bounds["norm"][step]), step
        optimizer.step()
    check_after(model, ref, atol=3e-5)


def test_finetuning_steps():
    """Three AdamW steps of the classifier with its head ten times as fast, clipped to a norm of 10."""
    ref, config = read("train_steps_finetune_scan"), recipe("finetune_scan")
    model = filled(NAME="PCP_MAE_Classifier", num_group=128, cls_dim=15, drop_path_rate=0.0).train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    optimizer = build_optimizer(model, config.optimizer)
    for group, rate in zip(optimizer.param_groups, ref["lr_groups"].tolist(), strict=True):
        assert group_rate(group, 2e-5, lambda scale: 2e-5 * scale) == pytest.approx(rate)
        group["lr"] = rate
    for step, tolerance in enumerate((1e-5, 1e-4, 1e-4)):
        optimizer.zero_grad()
        loss = model.loss(model(torch.from_numpy(ref["pts"][step])), torch.from_numpy(ref["label"][step]).long())
        assert loss.item() == pytest.approx(float(ref["loss"][step]), rel=tolerance), step
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), float(ref["clip"]))
        assert float(norm) == pytest.approx(float(ref["grad_norm_before_clip"][step]), rel=1e-3), step
        optimizer.step()
    check_after(model, ref, atol=1e-5)
