"""Weights of image teachers: from a file or a hub, checked, read as plain data, and brought to timm's names."""

import hashlib
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from models.images.clip_layout import ARCHIVES, find_clip, to_timm
from models.weights import state_dict_of
from utils.errors import UserError
from utils.files import read_checkpoint

CLIP_FOLDER = Path("~/.cache/clip")  # where OpenAI's program keeps its archives
OPENAI_ADDRESS = "https://openaipublic.azureedge.net/clip/models"


def read_weights(source: str, *, name: str, sha256: str | None = None) -> tuple[dict[str, Tensor], str | None]:
    """Return the state dict of a source as it is stored, and the SHA-256 of its file.

    Args:
        source: "hub", or the path of a safetensors or torch file, of OpenAI's archive or of a published I2P-MAE checkpoint.
        name: of the model at timm, with its tag.
        sha256: what the file must have.

    Raises:
        UserError: no such file, another SHA-256, unsafe or damaged content, or no hub and nothing in its cache.
    """
    path = _from_hub(name) if source == "hub" else Path(source).expanduser()
    if not path.is_file():
        raise UserError(f"model.teacher.weights: {path} does not exist. {_how_to_get(name)}")
    found = file_digest(path)
    if sha256 is not None and found != sha256:
        raise UserError(
            f"{path}: has the SHA-256 {found}, model.teacher.sha256 is {sha256}; give the file that the run began with"
        )
    return read_file(path, found), found


def load_tower(tower: nn.Module, weights: Mapping[str, Tensor], *, where: str, projects: bool) -> None:
    """Load a state dict in any layout that timm knows, or inside a published checkpoint, into a Vision Transformer of timm.

    Args:
        where: what it is, for messages.
        projects: the head is needed.

    Raises:
        UserError: it is of another architecture.
    """
    named = _to_timm_names(tower, weights, where)
    own = tower.state_dict()
    if not projects:
        named = {key: value for key, value in named.items() if not key.startswith("head.")}
    wrong = [key for key in own if key not in named or named[key].shape != own[key].shape]
    if wrong:
        key = wrong[0]
        found = f"is {tuple(named[key].shape)}" if key in named else "is not there"
        raise UserError(
            f"{where}: {len(wrong)} of {len(own)} tensors do not fit, first {key}: {found}, {tuple(own[key].shape)} is needed. "
            "They are weights of another architecture; set model.teacher.name to theirs"
        )
    tower.load_state_dict({key: named[key].float() for key in own})


def _to_timm_names(tower: nn.Module, weights: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    clip = find_clip(weights)
    named = to_timm(clip) if clip else dict(weights)
    kernel, wanted = named.get("patch_embed.proj.weight"), tower.patch_embed.proj.weight
    if kernel is not None and kernel.dim() == 4 and kernel.shape != wanted.shape:
        # timm would resample the kernel, and a teacher would be silently another one.
        raise UserError(
            f"{where}: patches are {tuple(kernel.shape)}, {tuple(wanted.shape)} is needed. "
            "They are weights of another architecture; set model.teacher.name to theirs"
        )
    from timm.models.vision_transformer import checkpoint_filter_fn

    try:
        return checkpoint_filter_fn(named, tower)  # other layouts, and positions of another image size
    except (RuntimeError, ValueError, KeyError, AssertionError, AttributeError) as error:
        raise UserError(
            f"{where}: does not fit ({error}); set model.teacher.name to the architecture of the file"
        ) from error


def read_file(path: Path, digest: str) -> dict[str, Tensor]:
    """Return the state dict of a file, with the SHA-256 `digest`, as it is stored.

    Raises:
        UserError: it is damaged, unsafe, or none of the formats of `read_weights`.
    """
    if _is_torchscript(path):
        # Such an archive holds a program. It is opened only where it is known to be OpenAI's, and then only for its tensors.
        if digest not in ARCHIVES:
            raise UserError(
                f"{path}: is a TorchScript archive with the SHA-256 {digest}, and only OpenAI's are opened "
                f"({', '.join(f'{file} {known}' for known, file in ARCHIVES.items())}); save its state dict as safetensors"
            )
        return {key: value.detach().clone() for key, value in torch.jit.load(path, "cpu").state_dict().items()}
    return state_dict_of(read_checkpoint(path))


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any("/code/" in name for name in archive.namelist())


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _from_hub(name: str) -> Path:
    """Return the file of a model's weights: OpenAI's archive where it lies, else from the cache of the hub, else downloaded."""
    archive = CLIP_FOLDER.expanduser() / "ViT-B-16.pt"
    if name == "vit_base_patch16_clip_quickgelu_224.openai" and archive.is_file():
        return archive
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError

    repository = _repository(name)
    kept = try_to_load_from_cache(repository, "model.safetensors")
    if isinstance(kept, str):
        return Path(kept)
    try:
        return Path(hf_hub_download(repository, "model.safetensors"))
    except (OSError, ValueError, HfHubHTTPError, RuntimeError) as error:
        reason = str(error).strip().split("\n")[0].rstrip(". ")[:120]
        raise UserError(
            f"model.teacher.weights: {name} is not in the cache of the hub, and the hub cannot be reached: {reason}. "
            f"{_how_to_get(name)}"
        ) from error


def _repository(name: str) -> str:
    from timm.models import get_pretrained_cfg

    config = get_pretrained_cfg(name)
    if config is None or not config.hf_hub_id:
        raise UserError(f"model.teacher.name: timm knows no weights of {name}; give a file with model.teacher.weights")
    return config.hf_hub_id


def _how_to_get(name: str) -> str:
    """Return the commands that get the weights of a model."""
    clip = ""
    if name == "vit_base_patch16_clip_quickgelu_224.openai":
        digest, file = next(iter(ARCHIVES.items()))
        clip = f", or OpenAI's archive: curl -LO {OPENAI_ADDRESS}/{digest}/{file}"
    return (
        f"Get them with: hf download {_repository(name)} model.safetensors --local-dir ckpts/teacher{clip}; then add --set "
        "model.teacher.weights=PATH. To try things without any: --set model.teacher.weights=random"
    )
