"""Weights from a checkpoint file or from mindcv's server, matched name by name and shape by shape."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from featreg.plugin import errors
from featreg_mindspore.libraries import mindcv, mindspore
from featreg_mindspore.trace import message

__all__ = ["load"]

_FORMATS = {".ckpt": "ckpt", ".safetensors": "safetensors"}
_LISTED = 8


def load(model: str, network: Any, weights: str) -> None:
    """Put weights into a network: ``"default"`` downloads mindcv's own, anything else is the path of a file.

    Raises WeightsError for a file that is missing, unreadable or does not match, and where a download fails.
    """
    if weights == "default":
        _load_default(model, network)
        return
    path = Path(weights).expanduser()
    if not path.is_file():
        raise errors.WeightsError(
            f"no weights {weights!r} for {model!r}",
            "'default', or the path of a .ckpt or .safetensors file",
            "no such file",
            remedy="weights=None gives random weights from a fixed seed",
        )
    parameters = _read(path)
    _check(network.parameters_dict(), parameters, path)
    mindspore.load_param_into_net(network, parameters)


def _read(path: Path) -> dict[str, Any]:
    kind = _FORMATS.get(path.suffix)
    if kind is None:
        raise errors.WeightsError(f"{path} is no checkpoint", "a .ckpt or .safetensors file", path.name)
    try:
        parameters: dict[str, Any] = mindspore.load_checkpoint(str(path), format=kind)
    except Exception as error:
        raise errors.WeightsError(
            f"{path} cannot be read as a checkpoint", f"a valid {kind}", message(error)
        ) from error
    return parameters


def _check(own: Mapping[str, Any], given: Mapping[str, Any], path: Path, resized: tuple[str, ...] = ()) -> None:
    """Raise WeightsError that lists every missing, unexpected and mis-shaped parameter; ``resized`` may differ."""
    problems = {
        "missing": [name for name in own if name not in given],
        "unexpected": [name for name in given if name not in own],
        "of another shape": [
            f"{name} is {tuple(given[name].shape)}, not {tuple(own[name].shape)}"
            for name in own
            if name in given and name not in resized and given[name].shape != own[name].shape
        ],
    }
    found = [f"{len(names)} {problem}: {_list(names)}" for problem, names in problems.items() if names]
    if found:
        raise errors.WeightsError(
            f"the weights in {path} do not match the network",
            f"its {len(own)} parameters, by name and shape",
            "; ".join(found),
            remedy="take the checkpoint of this very model, saved by mindspore.save_checkpoint",
        )


def _list(names: list[str]) -> str:
    rest = len(names) - _LISTED
    return ", ".join(names[:_LISTED]) + (f" and {rest} more" if rest > 0 else "")


def _load_default(model: str, network: Any) -> None:
    config = mindcv.models.registry.get_pretrained_cfg(model)
    url = config.get("url")
    if not url:
        raise errors.WeightsError(
            f"mindcv publishes no weights for {model!r}",
            "the path of a .ckpt or .safetensors file",
            remedy="weights=None gives random weights from a fixed seed",
        )
    path = Path(mindcv.models.helpers.get_checkpoint_download_root()) / Path(url).name
    if not path.is_file():
        _download(url, path)
    cut = config["num_classes"] == 1001
    resized = (f"{config['classifier']}.weight", f"{config['classifier']}.bias") if cut else ()
    _check(network.parameters_dict(), _read(path), path, resized)
    mindcv.models.helpers.load_pretrained(network, config)  # finds the file, cuts 1001 classes to 1000


def _download(url: str, path: Path) -> None:
    """Fetch a file into mindcv's own cache, whole or not at all.

    ``DownLoad.download_url`` is avoided: where a download fails it leaves an empty file that it later takes for the
    weights, tries again in the clear, and at last switches certificate checks off for the whole process.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        part = Path(folder) / path.name
        try:
            mindcv.utils.download.DownLoad().download_file(url, str(part))
        except OSError as error:
            raise errors.WeightsError(
                f"the weights at {url} cannot be downloaded",
                "a connection to the server",
                message(error),
                remedy=f"download the file elsewhere and pass weights='/path/to/{path.name}'",
            ) from error
        part.replace(path)
