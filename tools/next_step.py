"""What a command says at its end: the commands that go on from what it left."""

import shlex
from pathlib import Path

from datasets.preparing.recognise import converted_from
from tools.context import RunContext
from tools.published.paths import below_cfgs, find_recipe
from tools.run_folder import is_training
from utils import ROOT

# As they are typed here: setup.py knows these texts and what they are in an installation.
MAIN, VIS, EMBED = "python main.py", "python main_vis.py", "python -m tools.embed"


def next_commands(run: RunContext) -> list[str]:
    """Return commands that use the checkpoint of a run that trained, the most likely first; none after an evaluation."""
    if not is_training(run.args) or run.args.way != -1:  # the classifier of a few-shot fold is used for nothing else
        return []
    checkpoint = next((run.folder / f"ckpt-{name}.pth" for name in ("best", "last") if _is(run, name)), None)
    if checkpoint is None:
        return []
    recipe = find_recipe(run.args.config, run.args.method).path
    if hasattr(run.config.model, "num_parts") or hasattr(run.config.model, "nqueries"):
        return [_main(run, recipe, "--predict", _own_files(run), "--ckpts", str(checkpoint))]
    if hasattr(run.config.model, "cls_dim"):
        return _after_classifier(run, recipe, checkpoint)
    return _after_pre_training(run, recipe, run.folder / "ckpt-last.pth")


def _is(run: RunContext, name: str) -> bool:
    return (run.folder / f"ckpt-{name}.pth").is_file()


def _after_classifier(run: RunContext, recipe: Path, checkpoint: Path) -> list[str]:
    files = _own_files(run)
    commands = []
    if Path(files).exists():
        commands.append(shlex.join([*EMBED.split(), "--ckpts", str(checkpoint), "--input", files, "--out",
                                    str(run.folder / "predictions.npz")]))  # fmt: skip
        up = converted_from(Path(files))
        note = f"; with --up {up} for files such as the set was converted from" if up != "y" else ""
        commands[-1] += f"   # any other clouds or meshes likewise{note}"
    return [*commands, _main(run, recipe, "--test", "--ckpts", str(checkpoint), "--exp_name", run.args.exp_name)]


def _after_pre_training(run: RunContext, recipe: Path, checkpoint: Path) -> list[str]:
    name = run.args.exp_name
    commands = []
    fine_tuning, svm = _beside(recipe, "fine-tuning"), recipe.with_name("linear-svm.yaml")
    for known in filter(None, (fine_tuning, _beside(recipe, "detection"))):
        commands.append(_main(run, known, "--finetune_model", "--exp_name", name, "--ckpts", str(checkpoint)))
    if svm.is_file() and svm != recipe:
        probes = ("--probe", "knn", "--probe", "logistic")
        commands.append(_main(run, svm, "--test_svm", *probes, "--exp_name", name, "--ckpts", str(checkpoint)))
    look = [*VIS.split(), "--config", _shown(recipe), "--exp_name", name, "--ckpts", str(checkpoint)]
    return [*commands, shlex.join(look)]


def _beside(recipe: Path, task: str) -> Path | None:
    """Return the recipe of another task that belongs to a pre-training recipe: in its folder, or in cfgs/ under the same name."""
    below = below_cfgs(recipe)
    if below is None:
        path = recipe.with_name(f"{task}.yaml")
    elif below.parts[0] == "debug":
        path = ROOT / "cfgs" / task / below.stem / "debug.yaml"
    elif below.parts[0] == "pre-training" and len(below.parts) == 3:
        path = ROOT / "cfgs" / task / Path(*below.parts[1:])
    else:
        return None
    return path if path.is_file() and path != recipe else None


def _own_files(run: RunContext) -> str:
    """Return the folder of the evaluated set, where that is one of files that can be embedded."""
    entry = run.config.dataset.test or run.config.dataset.val or run.config.dataset.train
    return entry.DATA_PATH if getattr(entry, "NAME", "") == "Folder" else "FILE_OR_FOLDER"


def _main(run: RunContext, recipe: Path, *flags: str) -> str:
    root = ["--data_root", str(run.args.data_root)] if run.args.data_root else []
    return shlex.join([*MAIN.split(), "--config", _shown(recipe), *flags, *root])


def _shown(path: Path) -> str:
    return path.relative_to(ROOT).as_posix() if path.is_absolute() and path.is_relative_to(ROOT) else path.as_posix()
