"""Models in folders and in repositories of the Hugging Face hub: `config.json` and `model.safetensors`.

The interface is that of `huggingface_hub.PyTorchModelHubMixin`, which models do not inherit from: importing it takes as long as importing
PyTorch, and only what reaches the hub needs it.
"""

import json
import tempfile
from pathlib import Path
from typing import Any, Self

from torch import nn

from models.registry import MODELS
from models.weights import load_weights
from utils.config.merge import to_dict
from utils.errors import UserError
from utils.files import explain_write, save_tensors, write_atomic
from utils.reading import read_json, reason

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"


class HubModel(nn.Module):
    """A model that can be saved, loaded and shared."""

    config: Any

    def save_pretrained(self, save_directory: str | Path) -> None:
        """Write configuration, weights and a card, if there is none yet, to a folder; the weights are a checkpoint for every command.

        Raises:
            UserError: the folder cannot be written.
        """
        folder, config = Path(save_directory), to_dict(self.config)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(explain_write(folder, error)) from error
        save_tensors(folder / WEIGHTS, self.state_dict(), {"config": {"model": config}})
        _write(folder / CONFIG, json.dumps(config, indent=2) + "\n")
        if not (folder / CARD).exists():
            _write(folder / CARD, _card(config["NAME"]))

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        token: str | bool | None = None,
        **overrides: Any,
    ) -> Self:
        """Build a model, in evaluation mode, from a folder or from a repository of the hub.

        Args:
            pretrained_model_name_or_path: what `save_pretrained` wrote, or a repository, "user/name"; a folder of that name comes first.
            revision, cache_dir, force_download, local_files_only, token: of the hub, as in `huggingface_hub.hf_hub_download`.
            overrides: keys of the model, over those of its configuration.

        Raises:
            UserError: there are no such files, they cannot be reached, or are of another kind of model.
        """
        name = str(pretrained_model_name_or_path)
        if Path(name).is_dir():
            files = [Path(name) / CONFIG, Path(name) / WEIGHTS]
        else:
            options = {"revision": revision, "cache_dir": cache_dir, "force_download": force_download}
            options |= {"local_files_only": local_files_only, "token": token}
            files = [_download(name, file, options) for file in (CONFIG, WEIGHTS)]
        config = read_json(files[0], "the configuration of a model")
        registered = config.get("NAME") if isinstance(config, dict) else None
        if registered not in MODELS:
            raise UserError(f"{name}: {CONFIG} is not of a model of this package (NAME {registered!r})")
        target = MODELS.entry(registered).target
        if not issubclass(target, cls):
            raise UserError(
                f"{name}: is a {target.__name__}, not a {cls.__name__}; call {target.__name__}.from_pretrained, or start another model "
                f"from its weights, {WEIGHTS}"
            )
        model = MODELS.build({**config, **overrides})
        load_weights(model, files[1])
        return model.eval()

    def push_to_hub(
        self,
        repo_id: str,
        *,
        commit_message: str = "Push model using m2ae",
        private: bool | None = None,
        token: str | None = None,
        branch: str | None = None,
        create_pr: bool = False,
    ) -> str:
        """Write a model to a repository of the hub, which is created where it does not exist; returns the address of the commit.

        Raises:
            UserError: huggingface_hub is missing, or the hub refuses or cannot be reached.
        """
        hub = _hub()
        try:
            api = hub.HfApi(token=token)
            repository = api.create_repo(repo_id=repo_id, private=private, exist_ok=True).repo_id
            with tempfile.TemporaryDirectory() as folder:
                self.save_pretrained(folder)
                commit = api.upload_folder(
                    repo_id=repository,
                    folder_path=folder,
                    commit_message=commit_message,
                    revision=branch,
                    create_pr=create_pr,
                )
        except (OSError, ValueError, RuntimeError) as error:
            raise UserError(
                f"{repo_id}: the hub did not take the model: {reason(error)}; log in with hf auth login, and check the network"
            ) from error
        return str(commit)


def _hub() -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise UserError(
            "the hub needs the package huggingface_hub: pip install huggingface_hub; folders need nothing"
        ) from error
    return huggingface_hub


def _download(name: str, file: str, options: dict[str, Any]) -> Path:
    hub = _hub()
    try:
        return Path(hub.hf_hub_download(name, file, **options))
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(
            f"{name}: is no folder here, and the hub does not give its {file}: {reason(error)}; check the name and the network"
        ) from error


def _write(path: Path, text: str) -> None:
    write_atomic(path, lambda file: file.write(text.encode()))


def _card(name: str) -> str:
    return (
        "---\nlibrary_name: m2ae\ntags:\n- point-cloud\n- masked-autoencoder\n---\n\n"
        f"# {name}\n\nWeights of `{name}` for the package m2ae. `model.safetensors` is also a checkpoint of its commands (`--ckpts`).\n"
    )
