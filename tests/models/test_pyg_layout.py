"""Weights of torch-pointcloud's layout: our models are written as that package names its layers, and read back."""

import re

import pytest
import torch

import api
from models import build_model, load_weights
from models.pyg_layout import is_converted, published_layout
from models.weights import method_of
from tools.embedder import open_embedder
from tools.launch import load_recipe
from utils.config.merge import to_dict
from utils.errors import UserError

RECIPES = (
    "debug/point-m2ae", "debug/point-mae", "fine-tuning/point-m2ae/debug", "fine-tuning/point-mae/debug",
    "segmentation/point-m2ae/debug", "segmentation/point-mae/debug",
)  # fmt: skip
# What the layers of published sequences are called there, learned from the package torch-pointcloud 0.0.18.
NAMES = {
    r"(.*)first_conv\.0$": r"\1local_mlp.lins.0",
    r"(.*)first_conv\.3$": r"\1local_mlp.lins.1",
    r"(.*)first_conv\.1$": r"\1local_mlp.norms.0.module",
    r"(.*)second_conv\.0$": r"\1global_mlp.lins.0",
    r"(.*)second_conv\.3$": r"\1global_mlp.lins.1",
    r"(.*)second_conv\.1$": r"\1global_mlp.norms.0.module",
    r"(.*pos_embed(?:s\.\d)?)\.0$": r"\1.lins.0",
    r"(.*pos_embed(?:s\.\d)?)\.2$": r"\1.lins.1",
    r"(.*)\.mlp\.fc1$": r"\1.mlp.lins.0",
    r"(.*)\.mlp\.fc2$": r"\1.mlp.lins.1",
    r"(token_prop\.\d)\.fuse\.net\.0$": r"\1.fp.mlp.lins.0",
    r"(token_prop\.\d)\.fuse\.net\.1$": r"\1.fp.mlp.norms.0.module",
    r"(token_prop\.\d\.extraction)\.operation\.(\d\.net\d)\.0$": r"\1.\2.lins.0",
    r"(token_prop\.\d\.extraction)\.operation\.(\d\.net\d)\.1$": r"\1.\2.norms.0.module",
    r"(propagation.*)\.mlp_convs\.(\d)$": r"\1.mlp.lins.\2",
    r"(propagation.*)\.mlp_bns\.(\d)$": r"\1.mlp.norms.\2.module",
    r"label_conv\.0$": "label_conv.lins.0",
    r"label_conv\.1$": "label_conv.norms.0.module",
    r"increase_dim\.0$": "increase_dim.lins.0",
    r"cls_head_finetune\.0$": "head.lins.0",
    r"cls_head_finetune\.1$": "head.norms.0.module",
    r"cls_head_finetune\.4$": "head.lins.1",
    r"cls_head_finetune\.5$": "head.norms.1.module",
    r"cls_head_finetune\.8$": "head.lins.2",
    r"norm$": "norm_f",
}


def converted(state, recipe):
    """Write a state dict as that package has it."""
    found = {}
    for key, value in state.items():
        layer, _, name = key.rpartition(".")
        new = layer
        for pattern, there in NAMES.items():
            if pattern == r"norm$" and ("mae" not in recipe or "m2ae" in recipe or recipe.startswith("debug")):
                continue
            if re.match(pattern, layer):
                new = re.sub(pattern, there, layer)
                break
        if match := re.fullmatch(r"(convs|bns)(\d)", layer):
            new = f"head.{'lins' if match[1] == 'convs' else 'norms'}.{int(match[2]) - 1}" + ".module" * (
                match[1] == "bns"
            )
        if value.dim() == 3 and name == "weight":
            value = value.squeeze(-1)
        if re.search(r"fuse\.net\.0$|propagation.*mlp_convs\.0$", layer) and name == "weight":
            own = value.shape[0] if "fuse" in layer else 3
            value = torch.cat([value[:, own:], value[:, :own]], dim=1)
        found[f"{new}.{name}" if new else name] = value
    return found


def random_model(recipe):
    """Return the configuration of a recipe's model, and weights of which none is as it is initialised."""
    torch.manual_seed(0)
    config = load_recipe(f"cfgs/{recipe}.yaml").model
    state = build_model(config).state_dict()
    return config, {key: torch.rand_like(value) if value.is_floating_point() else value for key, value in state.items()}


@pytest.mark.parametrize("recipe", RECIPES)
def test_weights_come_back_as_they_were(recipe):
    config, state = random_model(recipe)
    there = converted(state, recipe)
    assert is_converted(there) and not is_converted(state)
    back = published_layout(there)
    assert back.keys() == state.keys()
    for key, value in state.items():
        assert torch.equal(back[key], value), key
    assert not load_weights(build_model(config), back).missing


@pytest.mark.parametrize("recipe", ["debug/point-m2ae", "debug/point-mae"])
def test_a_file_is_loaded_as_it_is(recipe, tmp_path):
    """Each way to weights takes a converted file: the loader, a tool with a recipe, `create_model`; its head is untrained elsewhere."""
    config, state = random_model(recipe)
    path, method = tmp_path / "there.pth", recipe.partition("/")[2]
    torch.save({"state_dict": {f"module.{key}": value for key, value in converted(state, recipe).items()}}, path)
    assert method_of(torch.load(path)) == method

    def holds_all(model):
        return all(torch.equal(value, state[key]) for key, value in model.state_dict().items())

    model = build_model(config)
    assert not load_weights(model, path).missing and holds_all(model)
    assert holds_all(open_embedder(path, config=f"cfgs/{recipe}.yaml").model)
    keys = {key: value for key, value in to_dict(config).items() if key != "NAME"}
    short = method.replace("-", "_")
    assert holds_all(api.create_model(f"{short}.pretrain", weights=path, **keys))


def test_the_layout_of_the_package():
    """Keys and shapes as the package itself has them, of each kind of layer."""
    keys = {
        "h_encoder.token_embed.1.local_mlp.lins.0.weight": ("h_encoder.token_embed.1.first_conv.0.weight", (96, 96, 1)),
        "MAE_encoder.encoder.global_mlp.norms.0.module.running_var": (
            "MAE_encoder.encoder.second_conv.1.running_var",
            (),
        ),
        "h_encoder.encoder_pos_embeds.2.lins.1.weight": ("h_encoder.encoder_pos_embeds.2.2.weight", (96, 96)),
        "decoder_pos_embed.lins.0.bias": ("decoder_pos_embed.0.bias", ()),
        "h_decoder.1.blocks.0.mlp.lins.1.weight": ("h_decoder.1.blocks.0.mlp.fc2.weight", (96, 96)),
        "MAE_encoder.blocks.blocks.11.attn.qkv.weight": ("MAE_encoder.blocks.blocks.11.attn.qkv.weight", (96, 96)),
        "rec_head.weight": ("rec_head.weight", (96, 96, 1)),
        "norm_f.weight": ("norm.weight", (96, 96)),
        "mask_token": ("mask_token", (96, 96)),
        "head.norms.1.module.num_batches_tracked": ("cls_head_finetune.5.num_batches_tracked", ()),
    }
    back = published_layout({key: torch.zeros(96, 96) for key in keys})
    for new, shape in keys.values():
        assert back[new].shape == (shape or (96, 96)), new


def test_a_layer_without_a_place_is_an_error():
    with pytest.raises(UserError, match=r"neck\.lins\.0\.weight of torch-pointcloud has no place"):
        published_layout({"neck.lins.0.weight": torch.zeros(2, 2)})
