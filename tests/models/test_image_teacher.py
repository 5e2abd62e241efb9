"""The image teacher: any Vision Transformer, frozen; its weights from files, and what is refused."""

import hashlib

import pytest
import torch
from safetensors.torch import save_file

from models.images import clip_layout
from models.images import weights as image_weights
from models.images.clip_layout import SETTINGS, find_clip, with_clip
from models.images.teacher import TeacherConfig, build_teacher
from utils.errors import UserError

TINY = {"embed_dim": 24, "depth": 2, "num_heads": 3}
PLAIN, CLIP = "vit_tiny_patch16_224", "vit_base_patch16_clip_quickgelu_224"


def config(name=PLAIN, arguments=TINY, **keys):
    return TeacherConfig(**{"name": name, "weights": "random", "image_size": 64, "arguments": dict(arguments), **keys})


def clip_config(**keys):
    return config(CLIP, {**TINY, "num_classes": 12}, **keys)


@pytest.fixture
def images():
    return torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))


def clip_weights(tower):
    """Return the weights of a tower of timm as OpenAI names them, with a text tower of two blocks."""
    state = {
        "visual.proj": tower.head.weight.detach().t().clone(),
        "visual.conv1.weight": tower.patch_embed.proj.weight,
    }
    outer = {ours: theirs for theirs, ours in clip_layout._OUTER.items() if theirs not in ("proj", "conv1.weight")}
    inner = {ours: theirs for theirs, ours in clip_layout._INNER.items()}
    for key, value in tower.state_dict().items():
        if key in outer:
            state[f"visual.{outer[key]}"] = value.squeeze(0) if value.dim() == 3 else value
        elif key.startswith("blocks."):
            _, block, rest = key.split(".", 2)
            state[f"visual.transformer.resblocks.{block}.{inner[rest]}"] = value
            state[f"transformer.resblocks.{block}.{inner[rest]}"] = torch.ones(2)
    state["visual.class_embedding"] = state["visual.class_embedding"].flatten()
    text = (*clip_layout._TEXT_FIRST, *clip_layout._TEXT_LAST, *SETTINGS)
    return {key: value.detach().clone() for key, value in {**state, **{name: torch.ones(2) for name in text}}.items()}


@pytest.fixture
def clip_teacher():
    teacher = build_teacher(clip_config())
    for parameter in teacher.tower.parameters():
        parameter.data.normal_(std=0.3, generator=torch.Generator().manual_seed(parameter.numel()))
    teacher.tower.head.bias.data.zero_()
    return teacher


@pytest.mark.parametrize(
    "name, keys, width, side",
    [
        (PLAIN, TINY, 24, 4),
        ("vit_small_patch14_reg4_dinov2", TINY, 24, 5),
        ("vit_base_patch16_siglip_224", TINY, 24, 4),
        (CLIP, {**TINY, "num_classes": 12}, 12, 4),
        ("vit_base_patch16_clip_224.openai_ft_in1k", TINY, 24, 4),
    ],
)
def test_teachers_of_all_kinds(name, keys, width, side):
    """With and without class token and registers, projected (CLIP) or not; saliency is attention to patches."""
    teacher = build_teacher(config(name, keys, image_size=70 if "patch14" in name else 64))
    size = teacher.patches * teacher.tower.patch_embed.patch_size[0]
    seen = teacher(torch.rand(2, size, size))
    assert (teacher.width, teacher.patches) == (width, side)
    assert seen.features.shape == (2, width, side, side) and seen.saliency.shape == (2, side, side)
    assert (seen.saliency > 0).all() and (seen.saliency.sum((1, 2)) <= 1 + 1e-5).all()
    assert not seen.features.requires_grad and not any(p.requires_grad for p in teacher.parameters())
    assert not teacher.train().tower.training


def test_features_are_those_of_timm(images):
    """The patches of `forward_features`, and the attention that timm's own block would compute."""
    teacher = build_teacher(config(statistics="own"))
    seen = teacher(images)
    shown = (images.unsqueeze(1).expand(-1, 3, -1, -1) - 0.5) / 0.5
    expected = teacher.tower.forward_features(shown)[:, 1:].transpose(1, 2).reshape(3, 24, 4, 4)
    torch.testing.assert_close(seen.features, expected)

    entered = {}
    last = teacher.tower.blocks[-1]
    last.attn.register_forward_pre_hook(lambda module, inputs: entered.update(x=inputs[0]))
    teacher.tower.forward_features(shown)
    q, k, _ = last.attn.qkv(entered["x"]).view(3, 17, 3, 3, 8).permute(2, 0, 3, 1, 4)
    attention = (q @ k.transpose(-1, -2) / 8**0.5).softmax(-1).mean(1)  # (I, T, T)
    torch.testing.assert_close(seen.saliency.flatten(1), attention[:, 0, 1:])


def test_statistics_and_precision_change_what_is_seen(images):
    default = build_teacher(config())(images).features
    own = build_teacher(config(statistics="own"))(images).features
    coarse = build_teacher(config(precision="bf16"))(images).features
    assert not torch.allclose(default, own, atol=1e-3) and coarse.dtype == torch.float32
    assert not torch.equal(default, coarse)
    torch.testing.assert_close(default, coarse, rtol=0.1, atol=0.1)


def test_the_random_teacher_is_the_same_in_every_run(images):
    first = build_teacher(config())(images).features
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    assert torch.equal(first, build_teacher(config())(images).features)
    assert torch.equal(state, torch.random.get_rng_state())


@pytest.mark.parametrize("form", ["safetensors", "pth", "wrapped", "clip", "checkpoint"])
def test_weights_from_files(tmp_path, images, clip_teacher, form):
    """timm's names, OpenAI's names, and inside a published I2P-MAE checkpoint: the same teacher each time."""
    tower, path = clip_teacher.tower, tmp_path / f"weights.{'safetensors' if form == 'safetensors' else 'pth'}"
    if form == "safetensors":
        save_file(tower.state_dict(), path)
    elif form == "checkpoint":
        inside = with_clip({"mask_token": torch.zeros(1, 4)}, find_clip(clip_weights(tower)))
        torch.save({"base_model": {f"module.{key}": value for key, value in inside.items()}}, path)
    else:
        state = clip_weights(tower) if form == "clip" else tower.state_dict()
        torch.save({"model": state} if form == "wrapped" else state, path)
    keys = clip_config(weights=str(path))
    seen, expected = build_teacher(keys)(images), clip_teacher(images)
    close = {"rtol": 2e-2, "atol": 2e-2} if form == "checkpoint" else {}  # published checkpoints hold half precision
    torch.testing.assert_close(seen.features, expected.features, **close)
    assert keys.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert build_teacher(clip_config(weights=str(path), sha256=keys.sha256)).width == 12


def test_positions_follow_the_image_size(tmp_path, clip_teacher):
    path = tmp_path / "weights.safetensors"
    save_file(clip_teacher.tower.state_dict(), path)
    teacher = build_teacher(clip_config(weights=str(path), image_size=96))
    assert teacher.tower.pos_embed.shape == (1, 37, 24) and teacher.patches == 6


class Archive(torch.nn.Module):
    """Holds tensors under the names of a state dict, as a TorchScript archive does."""

    def __init__(self, state):
        super().__init__()
        for key, value in state.items():
            owner = self
            *path, name = key.split(".")
            for part in path:
                if not hasattr(owner, part):
                    owner.add_module(part, torch.nn.Module())
                owner = getattr(owner, part)
            owner.register_buffer(name, value)

    def forward(self, x):
        return x


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_only_the_known_torchscript_archive_is_opened(tmp_path, monkeypatch, images, clip_teacher):
    path = tmp_path / "ViT-B-16.pt"
    torch.jit.script(Archive(clip_weights(clip_teacher.tower))).save(str(path))
    loads = []
    monkeypatch.setattr(torch.jit, "load", lambda *args, load=torch.jit.load: loads.append(args) or load(*args))
    with pytest.raises(
        UserError, match=r"TorchScript archive with the SHA-256 [0-9a-f]{64}, and only OpenAI's are opened"
    ):
        build_teacher(clip_config(weights=str(path)))
    assert not loads, "an unknown archive must not be opened"
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setitem(image_weights.ARCHIVES, digest, "ViT-B-16.pt")
    seen = build_teacher(clip_config(weights=str(path)))(images)
    torch.testing.assert_close(seen.features, clip_teacher(images).features)
    assert len(loads) == 1


def test_the_hub_or_its_cache_or_a_clear_error(tmp_path, monkeypatch, clip_teacher):
    import huggingface_hub

    asked = []
    monkeypatch.setattr(image_weights, "CLIP_FOLDER", tmp_path / "clip")
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *args: asked.append(args))

    def unreachable(*args):
        raise OSError("no route to the host")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", unreachable)
    with pytest.raises(UserError) as caught:
        build_teacher(clip_config(weights="hub"))
    message = str(caught.value)
    # Not the weights that timm takes for the bare name.
    assert asked == [("timm/vit_base_patch16_clip_224.openai", "model.safetensors")]
    assert "no route to the host" in message and "hf download timm/vit_base_patch16_clip_224.openai" in message
    assert "ViT-B-16.pt" in message and "model.teacher.weights=random" in message

    kept = tmp_path / "model.safetensors"
    save_file(clip_teacher.tower.state_dict(), kept)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *args: str(kept))
    assert build_teacher(clip_config(weights="hub")).width == 12


@pytest.mark.parametrize(
    "keys, message",
    [
        ({"name": "vit_tiny_patch16_223"}, "is no Vision Transformer of timm; did you mean vit_tiny_patch16"),
        ({"name": "resnet18"}, "resnet18 is no Vision Transformer of timm"),
        ({"image_size": 70}, "image_size: 70 is no multiple of the patches of vit_tiny_patch16_224, 16 pixels; use 64"),
        ({"image_size": 8}, "use 16"),
        ({"arguments": {"depht": 2}}, "cannot be built with image_size 64"),
        ({"weights": "nowhere.pth"}, r"nowhere.pth does not exist. Get them with: hf download timm/vit_tiny"),
    ],
)
def test_bad_keys(keys, message):
    with pytest.raises(UserError, match=message):
        build_teacher(config(**keys))


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda s: s | {"patch_embed.proj.weight": torch.zeros(24, 3, 8, 8)}, r"patches are \(24, 3, 8, 8\), \(24, 3, 16, 16\)"),
        (lambda s: {k: v for k, v in s.items() if "blocks.1" not in k}, "first blocks.1.norm1.weight: is not there"),
        (lambda s: s | {"norm.weight": torch.zeros(48)}, r"first norm.weight: is \(48,\), \(24,\) is needed"),
        (lambda s: {"h_encoder.a": torch.zeros(3)}, "of another architecture"),
    ],
)  # fmt: skip
def test_weights_of_another_architecture(tmp_path, change, message):
    path = tmp_path / "weights.safetensors"
    save_file(change(build_teacher(config()).tower.state_dict()), path)
    with pytest.raises(UserError, match=message):
        build_teacher(config(weights=str(path)))


def test_damaged_or_other_files(tmp_path):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(b"\x00" * 40)
    with pytest.raises(UserError, match="is damaged or no safetensors file"):
        build_teacher(config(weights=str(path)))
    save_file(build_teacher(config()).tower.state_dict(), path)
    with pytest.raises(UserError, match=r"has the SHA-256 .* give the file that the run began with"):
        build_teacher(config(weights=str(path), sha256="0" * 64))


def test_export_needs_the_text_tower(clip_teacher):
    visual = {key: value for key, value in clip_weights(clip_teacher.tower).items() if key.startswith("visual.")}
    with pytest.raises(UserError, match=r"lacks .* tensors of the published layout.* text tower"):
        with_clip({}, visual)
