"""Every command line on the pages of the projects, as published: its flags are read and its recipe is found."""

import shlex
from functools import partial

import pytest

import main_vis
from tools.launch import load_recipe
from tools.published import point_jepa
from tools.published.gm3d import parse_finetune, parse_pretrain
from tools.published.paths import find_recipe
from tools.published.segmentation import translate
from utils import ROOT
from utils.config.cli import parse_args

TRAILS = "--output_dir out --log_dir out"
# Method of the checkpoint, or of the page -> its commands; behind each the recipe that it stands for, below cfgs/.
COMMANDS = {
    "point-m2ae": """
        main.py --launcher pytorch --sync_bn --config cfgs/pre-training/point-m2ae.yaml --exp_name pre-train
            -> pre-training/point-m2ae
        main.py --config cfgs/linear-svm/modelnet40.yaml --test_svm modelnet40 --exp_name test_svm --ckpts ./ckpts/pre-train.pth
            -> linear-svm/point-m2ae/modelnet40
        main.py --config cfgs/linear-svm/scan_obj-bg.yaml --test_svm scan --exp_name test_svm --ckpts ./ckpts/pre-train.pth
            -> linear-svm/point-m2ae/scan_obj-bg
        main.py --config cfgs/fine-tuning/modelnet40.yaml --finetune_model --exp_name finetune --ckpts ckpts/pre-train.pth
            -> fine-tuning/point-m2ae/modelnet40
        main.py --config cfgs/fine-tuning/scan_pb.yaml --finetune_model --exp_name finetune --ckpts ckpts/pre-train.pth
            -> fine-tuning/point-m2ae/scan_pb
        main.py --config cfgs/fine-tuning/scan_obj.yaml --finetune_model --exp_name finetune --ckpts ckpts/pre-train.pth
            -> fine-tuning/point-m2ae/scan_obj
        main.py --config cfgs/fine-tuning/scan_obj-bg.yaml --finetune_model --exp_name finetune --ckpts ckpts/pre-train.pth
            -> fine-tuning/point-m2ae/scan_obj-bg
        main.py --config cfgs/fine-tuning/modelnet40.yaml --test --exp_name finetune --ckpts ckpts/modelnet40.pth --vote
            -> fine-tuning/point-m2ae/modelnet40
        segmentation/main.py --model Point_M2AE_SEG --log_dir seg --ckpts P --root path/partseg --learning_rate 0.0002 --epoch 300
            -> segmentation/point-m2ae/shapenet_part
    """,
    "i2p-mae": """
        main.py --launcher pytorch --sync_bn --config cfgs/pre-training/i2p-mae.yaml --exp_name pre-train
            -> pre-training/i2p-mae
        main.py --config cfgs/linear-svm/modelnet40.yaml --test_svm modelnet40 --exp_name test_svm --ckpts ./ckpts/pre-train.pth
            -> linear-svm/i2p-mae/modelnet40
        main.py --config cfgs/linear-svm/scan_obj-bg.yaml --test_svm scan --exp_name test_svm --ckpts ./ckpts/pre-train.pth
            -> linear-svm/i2p-mae/scan_obj-bg
        main.py --config cfgs/fine-tuning/modelnet40.yaml --finetune_model --exp_name finetune --ckpts ckpts/pre-train.pth
            -> fine-tuning/i2p-mae/modelnet40
        main.py --config cfgs/fine-tuning/scan_pb.yaml --finetune_model --exp_name finetune --ckpts ckpts/pre-train.pth
            -> fine-tuning/i2p-mae/scan_pb
    """,
    "point-mae": """
        main.py --config cfgs/pretrain.yaml --exp_name pre --method point-mae -> pre-training/point-mae
        main.py --config cfgs/finetune_scan_hardest.yaml --finetune_model --exp_name ft --ckpts P
            -> fine-tuning/point-mae/scan_pb
        main.py --config cfgs/finetune_scan_objbg.yaml --finetune_model --exp_name ft --ckpts P
            -> fine-tuning/point-mae/scan_obj-bg
        main.py --config cfgs/finetune_scan_objonly.yaml --finetune_model --exp_name ft --ckpts P
            -> fine-tuning/point-mae/scan_obj
        main.py --config cfgs/finetune_modelnet.yaml --finetune_model --exp_name ft --ckpts P
            -> fine-tuning/point-mae/modelnet40
        main.py --config cfgs/finetune_modelnet_8k.yaml --finetune_model --exp_name ft --ckpts P
            -> fine-tuning/point-mae/modelnet40_8k
        main.py --test --config cfgs/finetune_modelnet.yaml --exp_name vote --ckpts P --vote
            -> fine-tuning/point-mae/modelnet40
        main.py --config cfgs/fewshot.yaml --finetune_model --ckpts P --exp_name fs --way 5 --shot 10 --fold 0
            -> few-shot/point-mae/modelnet40
        segmentation/main.py --ckpts P --root R --learning_rate 0.0002 --epoch 300
            -> segmentation/point-mae/shapenet_part
        main_vis.py --test --ckpts P --config cfgs/pretrain.yaml --exp_name vis -> pre-training/point-mae
    """,
    "inter-mae": """
        main.py --config cfgs/pretrain.yaml --exp_name pre -> pre-training/inter-mae
        main.py --config cfgs/finetune_scan_hardest.yaml --finetune_model --exp_name ft --ckpts P
            -> fine-tuning/inter-mae/scan_pb
        main.py --config cfgs/finetune_modelnet.yaml --finetune_model --exp_name ft --ckpts P
            -> fine-tuning/inter-mae/modelnet40
        main.py --config cfgs/finetune_modelnet_8k.yaml --finetune_model --exp_name ft --ckpts P
            -> fine-tuning/inter-mae/modelnet40_8k
        main.py --config cfgs/fewshot.yaml --finetune_model --ckpts P --exp_name fs --way 5 --shot 10 --fold 0
            -> few-shot/inter-mae/modelnet40
        segmentation/main.py --ckpts P --root R --learning_rate 0.0002 --epoch 300
            -> segmentation/inter-mae/shapenet_part
        main_vis.py --test --ckpts P --config cfgs/pretrain.yaml --exp_name vis -> pre-training/inter-mae
    """,
    "pcp-mae": """
        main.py --config cfgs/pretrain/base.yaml --exp_name pre -> pre-training/pcp-mae
        main.py --config cfgs/finetune_scan_hardest.yaml --finetune_model --exp_name ft --ckpts P --seed 1
            -> fine-tuning/pcp-mae/scan_pb
        main.py --config cfgs/finetune_scan_objbg.yaml --finetune_model --exp_name ft --ckpts P
            -> fine-tuning/pcp-mae/scan_obj-bg
        main.py --config cfgs/finetune_scan_objonly.yaml --finetune_model --exp_name ft --ckpts P
            -> fine-tuning/pcp-mae/scan_obj
        main.py --config cfgs/finetune_modelnet.yaml --finetune_model --exp_name ft --ckpts P
            -> fine-tuning/pcp-mae/modelnet40
        main.py --config cfgs/finetune_modelnet_8k.yaml --finetune_model --exp_name ft --ckpts P
            -> fine-tuning/pcp-mae/modelnet40_8k
        main.py --test --config cfgs/finetune_modelnet.yaml --exp_name vote --ckpts P --seed 1 --vote
            -> fine-tuning/pcp-mae/modelnet40
        main.py --config cfgs/fewshot.yaml --finetune_model --ckpts P --exp_name fs --way 5 --shot 10 --fold 0 --seed 1
            -> few-shot/pcp-mae/modelnet40
        segmentation/main.py --gpu 0 --ckpts P --log_dir L --learning_rate 0.0002 --epoch 300 --root R --seed 1
            -> segmentation/pcp-mae/shapenet_part
        main_vis.py --config cfgs/pretrain/base.yaml --exp_name vis --ckpts P --test -> pre-training/pcp-mae
    """,
    "gm3d": f"""
        main_pretrain.py --config ./Point-MAE_SA3D/cfgs/config.yaml {TRAILS} -> pre-training/gm3d
        main_finetune.py --config Point-MAE_SA3D/cfgs/finetune_modelnet.yaml {TRAILS} --finetune P
            -> fine-tuning/gm3d/modelnet40
        main_finetune.py --config Point-MAE_SA3D/cfgs/config_finetune_scan_hardest.yaml {TRAILS} --finetune P
            -> fine-tuning/gm3d/scan_pb
        main_finetune.py --config Point-MAE_SA3D/cfgs/config_finetune_scan_objonly.yaml {TRAILS} --finetune P
            -> fine-tuning/gm3d/scan_obj
        main_finetune.py --config /Point-MAE_SA3D/cfgs/config_finetune_scan_objbg.yaml {TRAILS} --finetune P
            -> fine-tuning/gm3d/scan_obj-bg
        main_finetune.py --config Point-MAE_SA3D/cfgs/fewshot.yaml {TRAILS} --finetune P --way 5 --shot 10 --fold 0
            -> few-shot/gm3d/modelnet40
    """,
    "gm3d-point-m2ae": f"""
        main_pretrain.py --config ./Point-M2AE_SA3D/cfgs/config_Point_M2AE.yaml {TRAILS} -> pre-training/gm3d-point-m2ae
        main_finetune.py --config Point-M2AE_SA3D/cfgs/finetune_modelnet_PointM2AE.yaml {TRAILS} --finetune P
            -> fine-tuning/gm3d-point-m2ae/modelnet40
        main_finetune.py --config Point-M2AE_SA3D/cfgs/config_finetune_scan_hardest_PointM2AE.yaml {TRAILS} --finetune P
            -> fine-tuning/gm3d-point-m2ae/scan_pb
        main_finetune.py --config /Point-M2AE_SA3D/cfgs/config_finetune_scan_objonly_PointM2AE.yaml {TRAILS} --finetune P
            -> fine-tuning/gm3d-point-m2ae/scan_obj
        main_finetune.py --config Point-M2AE_SA3D/cfgs/config_finetune_scan_objbg_PointM2AE.yaml {TRAILS} --finetune P
            -> fine-tuning/gm3d-point-m2ae/scan_obj-bg
        main_finetune.py --config Point-M2AE_SA3D/cfgs/fewshot-Point-M2AE.yaml {TRAILS} --finetune P --way 10 --shot 20 --fold 9
            -> few-shot/gm3d-point-m2ae/modelnet40
    """,
    "point-jepa": """
        pointjepa fit -c configs/Point-JEPA/pretraining/shapenet.yaml -> pre-training/point-jepa
        pointjepa validate -c configs/Point-JEPA/pretraining/shapenet.yaml --model.pretrained_ckpt_path P -> pre-training/point-jepa
        pointjepa.tasks.classification fit --config configs/Point-JEPA/classification/modelnet40.yaml --model.pretrained_ckpt_path P --seed_everything 1
            -> fine-tuning/point-jepa/modelnet40
        pointjepa.tasks.classification fit --config configs/Point-JEPA/classification/scanobjectnn.yaml --model.pretrained_ckpt_path P
            -> fine-tuning/point-jepa/scan_pb
        pointjepa.tasks.classification fit --config configs/Point-JEPA/classification/scanobjectnn.yaml --config configs/Point-JEPA/classification/_scanobjectnn_obj_bg.yaml --model.pretrained_ckpt_path P
            -> fine-tuning/point-jepa/scan_obj-bg
        pointjepa.tasks.classification fit --config configs/Point-JEPA/classification/scanobjectnn.yaml --config configs/Point-JEPA/classification/_scanobjectnn_obj_only.yaml --model.pretrained_ckpt_path P
            -> fine-tuning/point-jepa/scan_obj
        pointjepa.tasks.classification fit --config configs/Point-JEPA/classification/modelnet_fewshot.yaml --model.pretrained_ckpt_path P --data.way 5 --data.shot 10 --data.fold 0
            -> few-shot/point-jepa/modelnet40
        pointjepa.tasks.part_segmentation fit --config configs/Point-JEPA/segmentation/shapenetpart.yaml --model.pretrained_ckpt_path P
            -> segmentation/point-jepa/shapenet_part
        pointjepa.eval.voting --config configs/Point-JEPA/classification/modelnet40.yaml --finetuned_ckpt_path P --seed_everything 1 --vote_num 10 --vote_iterations 300
            -> fine-tuning/point-jepa/modelnet40
    """,  # noqa: E501
}
PROGRAMS = {
    "main.py": parse_args,
    "main_vis.py": main_vis.parse_vis_args,
    "main_pretrain.py": parse_pretrain,
    "main_finetune.py": parse_finetune,
    "segmentation/main.py": lambda argv: parse_args(translate(argv)),
    **{name: partial(point_jepa.parse, name) for name in point_jepa.PROGRAMS},
}


def lines():
    for method, text in COMMANDS.items():
        for line in text.replace("\n            ->", " ->").strip().splitlines():
            command, recipe = line.split(" -> ")
            yield pytest.param(method, command.strip(), f"cfgs/{recipe.strip()}.yaml", id=f"{method}: {recipe.strip()}")


@pytest.mark.parametrize(("method", "command", "recipe"), lines())
def test_published_command(method, command, recipe, monkeypatch):
    monkeypatch.chdir(ROOT)
    program, *argv = shlex.split(command)
    args = PROGRAMS[program](argv)
    # What a checkpoint of the method says where the path does not.
    found = find_recipe(args.config, args.method or (method if args.ckpts else None))
    assert (ROOT / found.path).relative_to(ROOT).as_posix() == recipe
    config = load_recipe(found, overrides=args.set)
    if args.finetune_model and "segment" not in program:
        assert config.model.cls_dim
    assert args.notes == []
