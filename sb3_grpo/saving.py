"""Saving: files that are complete whenever the process is killed, and that are read without running what they contain."""

import io
import json
import os
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch as th
from stable_baselines3.common.save_util import load_from_zip_file, open_path

# Attributes of a model that describe its training: values that JSON has
HISTORY = ("regroup_history", "first_grouping", "num_timesteps", "_next_episode")
# Those that files of earlier versions do not have, with the value that they would have had
LATER_HISTORY: dict[str, Any] = {"_next_episode": 0}
# Entry of a model's zip file with the tensors that training goes on with. SB3 reads what ends with ".pth", but not this
TRAINING_STATE = "training_state.pt"


@contextmanager
def complete_file(path: str | Path) -> Iterator[Path]:
    """
    Write a file beside its final place and move it there once it is complete.

    A process that is killed in between leaves the old file as it was, and a hidden file ``.NAME.PID.part`` beside it.

    :param path: the file to write or to replace; its folder must exist
    :return: context in which the file at the returned path is to be written; an exception removes it and leaves the
        old file as it was
    """
    # a link stays a link
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_file():
        # a device or a pipe has no content that could be lost, and must not become a file
        yield path
        return
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield part
        with part.open("rb") as written:
            # the content must be on the disk before the name is: a machine may lose its power as well
            os.fsync(written.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def read_attributes(path: str | Path | io.BufferedIOBase) -> dict[str, Any]:
    """
    Read the attributes of a saved model as JSON has them, without running code.

    :param path: zip file of any SB3 algorithm
    :return: values by name; what JSON does not have is there as its text
    :raises ValueError: if the file is not the zip file of a model
    """
    file = open_path(path, "r", suffix="zip")
    try:
        with zipfile.ZipFile(file) as archive:
            return dict(json.loads(archive.read("data")))
    except (zipfile.BadZipFile, KeyError, ValueError) as error:
        raise ValueError(f"`path` must be the complete zip file of a model, got {path}: {error}") from error
    finally:
        if isinstance(path, (str, Path)):
            file.close()
        else:
            file.seek(0)


def to_bytes(tensors: Mapping[str, th.Tensor]) -> bytes:
    """
    Serialise tensors.

    :param tensors: by name
    :return: what ``torch.save`` writes
    """
    content = io.BytesIO()
    th.save(dict(tensors), content)
    return content.getvalue()


def read_training_state(path: str | Path | io.BufferedIOBase, device: str) -> dict[str, th.Tensor] | None:
    """
    Read the tensors that training goes on with, without running code.

    :param path: zip file of a model
    :param device: where the tensors are to be
    :return: tensors by name; ``None`` if the file has none
    """
    file = open_path(path, "r", suffix="zip")
    try:
        with zipfile.ZipFile(file) as archive:
            if TRAINING_STATE not in archive.namelist():
                return None
            content = io.BytesIO(archive.read(TRAINING_STATE))
    finally:
        if isinstance(path, (str, Path)):
            file.close()
        else:
            file.seek(0)
    return dict(th.load(content, map_location=device, weights_only=True))


def optimizer_tensors(optimizer: th.optim.Optimizer) -> dict[str, th.Tensor]:
    """
    Name the tensors in the state of an optimizer.

    :param optimizer: the optimizer
    :return: its state by name: ``optimizer/INDEX/NAME``
    """
    states = optimizer.state_dict()["state"]
    return {f"optimizer/{index}/{name}": th.as_tensor(v) for index, state in states.items() for name, v in state.items()}


def restore_optimizer(optimizer: th.optim.Optimizer, tensors: Mapping[str, th.Tensor]) -> None:
    """
    Replace the state of an optimizer.

    :param optimizer: its settings stay as they are
    :param tensors: its state, named as by :func:`optimizer_tensors`, among others
    """
    states: dict[int, dict[str, th.Tensor]] = {}
    for path, tensor in tensors.items():
        if path.startswith("optimizer/"):
            _, index, name = path.split("/")
            states.setdefault(int(index), {})[name] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": states})


def write_safetensors(path: Path, tensors: Mapping[str, th.Tensor], history: Mapping[str, Any]) -> None:
    """
    Write tensors and history into a safetensors file.

    :param path: file to write
    :param tensors: by name
    :param history: values that JSON has
    :raises ImportError: if the package safetensors is not installed
    """
    with complete_file(path) as part:
        # copies: tensors that share memory, as a features extractor of actor and critic, would be refused
        copies = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
        import_safetensors().save_file(copies, str(part), {"history": json.dumps(history)})


def import_safetensors() -> Any:
    """
    Import the optional package safetensors.

    :return: the module ``safetensors.torch``
    :raises ImportError: if it is not installed, with what to install
    """
    try:
        import safetensors.torch  # noqa: PLC0415  # an optional package
    except ImportError as error:
        raise ImportError('safetensors is not installed: pip install "sb3-grpo[extra]"') from error
    return safetensors.torch


def read_tensors(path: Path, device: str) -> tuple[dict[str, th.Tensor], dict[str, Any]]:
    """
    Read a saved model without running code: tensors, and numbers and names of its history.

    :param path: zip file, or safetensors file
    :param device: where the tensors are to be
    :return: the tensors by name, as in ``GRPO.save_tensors``, and the values of :data:`HISTORY`
    :raises ValueError: if the file is neither
    """
    if path.suffix == ".safetensors":
        safetensors = import_safetensors()
        with safetensors.safe_open(str(path), "pt", device=device) as file:
            history = json.loads((file.metadata() or {}).get("history", "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no dictionary
    else:
        history = read_attributes(path)
        params: Any = load_from_zip_file(path, load_data=False, device=device)[1]
        if params.keys() != {"policy", "policy.optimizer"}:
            raise ValueError(f"`path` must be a file of GRPO, got one that holds {sorted(params)}")
        states = params["policy.optimizer"]["state"]
        tensors = {
            **{f"policy/{name}": tensor for name, tensor in params["policy"].items()},
            **{f"optimizer/{index}/{name}": tensor for index, state in states.items() for name, tensor in state.items()},
            **(read_training_state(path, device) or {}),
        }
    history = {**LATER_HISTORY, **history}
    if missing := [name for name in HISTORY if name not in history]:
        raise ValueError(f"`path` must be a file of GRPO, got one without {missing}")
    return tensors, {name: history[name] for name in HISTORY}


def check_tensors(tensors: Mapping[str, th.Tensor], own: Mapping[str, th.Tensor], optimizer: th.optim.Optimizer) -> None:
    """
    Check that the tensors of a file fit a model.

    :param tensors: of a file
    :param own: of the model that is to take them over
    :param optimizer: of that model
    :raises ValueError: if names or shapes differ; the optimizer's state may be missing, as before its first step
    """
    wanted = {name: tensor.shape for name, tensor in own.items() if not name.startswith("optimizer/")}
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for name in tensors:
        if name.startswith("optimizer/"):
            index = int(name.split("/")[1])
            # moments have the shape of their parameter, counters have none
            moment = tensors[name].ndim > 0 and index < len(parameters)
            wanted[name] = parameters[index].shape if moment else th.Size()
    if unknown := sorted(name for name in tensors if name.startswith("policy/") and name not in own):
        raise ValueError(f"the file must be of a model that was built with the same arguments, but it has {unknown[0]!r}")
    for name, shape in wanted.items():
        if name not in tensors:
            raise ValueError(f"the file must be of a model that was built with the same arguments, but it has no {name!r}")
        if tensors[name].shape != shape:
            raise ValueError(
                f"the file must be of a model that was built with the same arguments, but {name!r} has the shape "
                f"{tuple(tensors[name].shape)} there and {tuple(shape)} here"
            )
