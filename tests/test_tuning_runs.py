"""Tuning from end to end: trained, tested, resumed, embedded; small checkpoints that need their base and refuse another one."""

import contextlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch

import main
import main_vis
from datasets import build_dataset
from datasets.formats.ply import write_ply
from models import build_model, load_weights
from tests.commands import check_exact_resume, pretrained, rows
from tools import embed, finetune
from tools.export.published import export, export_tensors
from tools.launch import open_run
from tools.weights import command as weights_command
from utils.config.cli import parse_args
from utils.files import file_hash, read_checkpoint

pytestmark = pytest.mark.usefixtures("no_pictures")

ROOT = Path(__file__).parent.parent
KINDS = ("mlp3", "linear", "lora", "gst", "dapt", "prompt")
SMALLEST = ["total_bs=16", "max_epoch=0", "max_epoch_inclusive=true", "log_every=2", "optimizer.kwargs.lr=0.01"]
SMALLEST += ["dataset.train.clouds=32", "scheduler.type=function"]
SMALLEST += [f"dataset.{entry}.clouds=20" for entry in ("val", "test")]


def arguments(task, method, name, *flags, settings=()):
    sets = [part for setting in (*SMALLEST, *settings) for part in ("--set", setting)]
    recipe = ROOT / "cfgs" / task / method / "debug.yaml"
    return ["--config", str(recipe), "--exp_name", name, "--device", "cpu", *flags, *sets]


def folder_of(task, method, name):
    return Path("experiments") / task / method / "debug" / name


def resumable(name, *flags):
    settings = ["max_epoch=1", "dataset.train.clouds=64"]
    flags = ("--finetune_model", "--ckpts", "point-mae.pth", "--tune", "lora", *flags)
    return arguments("fine-tuning", "point-mae", name, *flags, settings=settings)


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """Return a folder with two checkpoints of pre-training, and a run tuned by LoRA called `whole`."""
    folder = tmp_path_factory.mktemp("tuning")
    with contextlib.chdir(folder):
        for method in ("point-mae", "point-m2ae"):
            pretrained(f"{method}.pth", method)
        assert main.main(resumable("whole")) == 0
    return folder


@pytest.fixture
def beside(bases, monkeypatch):
    monkeypatch.chdir(bases)


WHOLE = folder_of("fine-tuning", "point-mae", "whole")


@pytest.mark.parametrize(
    ("task", "method"),
    [
        ("fine-tuning", "point-mae"),
        ("segmentation", "point-m2ae"),
        pytest.param("fine-tuning", "point-m2ae", marks=pytest.mark.slow),
        pytest.param("segmentation", "point-mae", marks=pytest.mark.slow),
    ],
)
def test_every_kind_trains_and_is_tested(beside, capsys, task, method):
    """What a run keeps is small, and gives in --test, which is not told the kind, the scores of the last evaluation."""
    settings = ["model.embed_widths=[128,256,512]"] if method == "point-m2ae" else []  # as the base has them
    for kind in KINDS:
        flags = ("--finetune_model", "--ckpts", f"{method}.pth", "--tune", kind)
        assert main.main(arguments(task, method, kind, *flags, settings=settings)) == 0
        folder = folder_of(task, method, kind)
        saved = read_checkpoint(folder / "ckpt-last.pth")
        facts = json.loads((folder / "result.json").read_text())
        assert saved["tuned"]["kind"] == facts["tuning"] == kind
        assert saved["tuned"]["base"]["sha256"] == file_hash(f"{method}.pth")
        said = f"tuning {kind}: {facts['trained_parameters']:,} of {facts['parameters']:,} parameters train"
        assert said in capsys.readouterr().err
        model = build_model(saved["config"]["model"])
        trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        assert sum(saved["base_model"][name].numel() for name in trained) == facts["trained_parameters"]
        statistics = {key for key in saved["base_model"] if "running_" in key or key.endswith("num_batches_tracked")}
        assert set(saved["base_model"]) == trained | statistics and all(
            key.startswith(model.HEAD) for key in statistics
        )
        assert main.main(arguments(task, method, kind, "--test", "--ckpts", str(folder / "ckpt-last.pth"))) == 0
        name = "accuracy" if task == "fine-tuning" else "instance mIoU"
        last = rows(folder, "val" if task == "fine-tuning" else "parts")[-1]
        score = last["accuracy"] if task == "fine-tuning" else last["instance_miou"]
        (tested,) = (json.loads((path / "result.json").read_text()) for path in folder.glob("test_*"))
        assert tested["results"][name] == pytest.approx(100 * score)


def test_the_best_epoch_is_kept_small(beside):
    best, last = (read_checkpoint(WHOLE / f"ckpt-{name}.pth") for name in ("best", "last"))
    assert best["optimizer"] is None and best["base_model"].keys() == last["base_model"].keys()
    facts = json.loads((WHOLE / "result.json").read_text())
    assert (WHOLE / "ckpt-best.pth").stat().st_size < 4 * facts["trained_parameters"] + 20_000


def test_resume_is_exact(beside, monkeypatch):
    check_exact_resume(monkeypatch, finetune, resumable, WHOLE.parent, at_call=6, kinds=("epoch", "val"))


def refused(capsys, argv, *words, command=main.main):
    assert command(argv) == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith("error: ") and "Traceback" not in message
    for word in words:
        assert word in message, message


def test_another_base_is_refused(beside, capsys, tmp_path):
    """Wherever a checkpoint is read; one that has moved is found next to it, or by --start_ckpts."""
    best = tmp_path / "best.pth"
    moved = read_checkpoint(WHOLE / "ckpt-best.pth")
    moved["tuned"]["base"]["path"] = "/nowhere/base.pth"
    torch.save(moved, best)
    testing = arguments("fine-tuning", "point-mae", "moved", "--test", "--ckpts", str(best))
    refused(capsys, testing, "was tuned on /nowhere/base.pth", "there is no /nowhere/base.pth", "--start_ckpts BASE")
    torch.save({**read_checkpoint("point-mae.pth"), "epoch": 2}, tmp_path / "base.pth")
    words = ("base.pth is another base, SHA-256 ", "--start_ckpts BASE")
    refused(capsys, testing, *words)
    refused(capsys, [*testing, "--start_ckpts", str(tmp_path / "base.pth")], *words)
    clouds = build_dataset({"NAME": "Synthetic", "subset": "test", "clouds": 20, "npoints": 256})
    write_ply(tmp_path / "a.ply", clouds.points[0])
    embedded = [
        "--ckpts",
        str(best),
        "--input",
        str(tmp_path / "a.ply"),
        "--out",
        str(tmp_path / "a.npz"),
        "--device",
        "cpu",
    ]
    refused(capsys, embedded, *words, command=embed.main)
    again = arguments("fine-tuning", "point-mae", "again", "--finetune_model", "--tune", "lora", "--ckpts", str(best))
    refused(capsys, again, *words)
    other = resumable("whole", "--resume")
    other[other.index("point-mae.pth")] = str(tmp_path / "base.pth")
    refused(capsys, other, *words, "--resume: --ckpts BASE")
    vis = ["--config", str(ROOT / "cfgs/debug/point-mae.yaml"), "--test", "--ckpts", str(best), "--device", "cpu"]
    refused(capsys, vis, "what --tune lora trained", "PointMAE is a model of pre-training", command=main_vis.main)

    assert main.main([*testing, "--start_ckpts", "point-mae.pth"]) == 0
    (tmp_path / "base.pth").write_bytes(Path("point-mae.pth").read_bytes())
    assert main.main(testing) == 0 and main.main(again) == 0 and embed.main(embedded) == 0
    classifier = build_model(moved["config"]["model"]).eval()
    load_weights(classifier, best)
    assert np.load(tmp_path / "a.npz")["features"].shape == (1, 96)
    # What was tuned once more still belongs to the first base.
    record = read_checkpoint(folder_of("fine-tuning", "point-mae", "again") / "ckpt-last.pth")["tuned"]["base"]
    assert record["sha256"] == file_hash("point-mae.pth") and Path(record["path"]).name == "base.pth"


def test_another_model_is_refused(beside, capsys):
    best = str(WHOLE / "ckpt-best.pth")
    start = ("--finetune_model", "--ckpts", best)
    refused(
        capsys,
        arguments("fine-tuning", "point-mae", "a", *start, "--tune", "gst"),
        "was tuned with kind lora",
        "give --tune lora",
    )
    rank = arguments("fine-tuning", "point-mae", "a", *start, "--tune", "lora", settings=["model.tune.rank=4"])
    refused(capsys, rank, "was tuned with rank 8", "this model has --tune lora")
    refused(capsys, arguments("segmentation", "point-mae", "a", *start), "fine-tuned classifier")
    refused(
        capsys,
        arguments("fine-tuning", "point-mae", "a", *start, "--tune", "lorra"),
        "'lorra' is unknown; did you mean lora",
    )
    refused(
        capsys,
        arguments("fine-tuning", "point-mae", "a", "--finetune_model", "--tune", "lora", "--transfer", "linear"),
        "say the same",
    )
    both = arguments(
        "fine-tuning", "point-mae", "a", "--finetune_model", settings=["model.tune.kind=gst", "transfer=mlp3"]
    )
    refused(capsys, both, "transfer: mlp3 and model.tune.kind gst contradict each other")
    pre = ["--config", str(ROOT / "cfgs/debug/point-mae.yaml"), "--exp_name", "a", "--device", "cpu", "--tune", "lora"]
    refused(capsys, pre, "--tune lora: Point_MAE is neither classifier nor part segmenter")
    clean = ["clean", best, "clean.pth"]
    refused(capsys, clean, "needs its base", command=weights_command.main)


def test_updates_merge_where_nothing_is_inserted(beside, capsys):
    """A full fine-tuning starts from the merged weights, and an export holds them."""
    best = WHOLE / "ckpt-best.pth"
    saved = read_checkpoint(best)
    tuned = build_model(saved["config"]["model"]).eval()
    load_weights(tuned, best)
    plain = build_model({**saved["config"]["model"], "tune": {"kind": "full"}}).eval()
    load_weights(plain, best)
    points = torch.randn(3, 128, 3, generator=torch.Generator().manual_seed(0)) * 0.4
    with torch.no_grad():
        torch.testing.assert_close(plain(points), tuned(points), rtol=1e-4, atol=1e-5)
        tuned.tuning.merge(tuned)
        torch.testing.assert_close(plain(points), tuned(points), rtol=1e-6, atol=1e-6)
    export(str(best), Path("merged.pth"))
    published = read_checkpoint("merged.pth")["base_model"]
    assert {key.removeprefix("module.") for key in published} == set(plain.state_dict())
    assert torch.equal(published["module.blocks.blocks.0.attn.qkv.weight"], plain.blocks.blocks[0].attn.qkv.weight)
    export_tensors(str(best), Path("whole.safetensors"))
    assert main.main(arguments("fine-tuning", "point-mae", "whole", "--test", "--ckpts", "whole.safetensors")) == 0
    capsys.readouterr()
    full = arguments("fine-tuning", "point-mae", "merged", "--finetune_model", "--ckpts", str(best))
    assert main.main(full) == 0
    assert "tuned" not in read_checkpoint(folder_of("fine-tuning", "point-mae", "merged") / "ckpt-last.pth")


@pytest.mark.parametrize("kind", ["full", "linear", "gst"])
def test_flag_and_key_are_the_same(beside, kind):
    """`--tune` says what the key of the recipe says, over a recipe that says otherwise too."""

    def resolved(name, *flags, settings=()):
        flags = ("--finetune_model", "--overwrite", *flags)
        return open_run(
            parse_args(arguments("fine-tuning", "pcp-mae", name, *flags, settings=settings)), torch.device("cpu")
        ).config

    by_flag = resolved("flag", "--tune", kind)
    assert resolved("key", settings=[f"model.tune.kind={kind}"]) == by_flag
    assert by_flag.model.head == ("linear" if kind == "linear" else "mlp3") and by_flag.transfer == "full"
    assert resolved("over", "--tune", kind, settings=["transfer=mlp3"]) == by_flag


def test_linear_is_what_the_recipes_of_pcp_mae_are(beside):
    """The published recipes with `transfer`, and `--tune`, train the same parameters in the same mode."""

    def trained(*flags, recipe):
        argv = [
            "--config",
            str(ROOT / "cfgs/fine-tuning/pcp-mae" / recipe),
            "--finetune_model",
            "--device",
            "cpu",
            "--overwrite",
        ]
        run = open_run(parse_args([*argv, "--exp_name", "pcp", *flags, "--set", "model.depth=2"]), torch.device("cpu"))
        model = finetune.build_classifier(run)
        model.tuning.set_mode(model, training=run.config.frozen_mode == "training")
        modes = {name for name, module in model.named_modules() if module.training and list(module.parameters())}
        return (
            {name for name, parameter in model.named_parameters() if parameter.requires_grad},
            modes,
            run.config.model.head,
        )

    for kind in ("linear", "mlp3"):
        before = trained(recipe=f"modelnet40-{kind}.yaml")
        assert trained("--tune", kind, "--set", "frozen_mode=training", recipe="modelnet40.yaml") == before
        assert {"cls_token", "cls_pos"} < before[0] and all(name.startswith("cls_") for name in before[0])
        still = trained("--tune", kind, recipe="modelnet40.yaml")
        assert still[0] == before[0] and {name for name in still[1] if not name.startswith("cls_head")} == set()
        assert still[1] < before[1]
