"""Adapters, checkpoints, LoRAs and plain models."""

import copy
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

import rankwise as rw
from loader import SEPARATOR, Loader
from mutate import of_json, of_tensors
from rankwise.io.load_plain import load_plain
from rankwise.io.plain import save_plain
from rankwise.io.training import load_training, save_training
from rankwise.recipes.run_findings import findings_of


@cache
def network() -> nn.Sequential:
    """Plain, a few numbers."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 4))


@cache
def start() -> nn.Sequential:
    """With an adapter and a part that trains, before the first step."""
    model = copy.deepcopy(network())
    rw.adapt_(model, rank=2, select=["0"], train=["2"])
    return model


@cache
def adapted() -> nn.Sequential:
    """Trained by two steps, so that no factor is zero."""
    model = copy.deepcopy(start())
    optimizer = rw.Optimizer(model)
    for _ in range(2):
        train(model, optimizer)
    return model


def training() -> tuple[nn.Module, Any, Any]:
    """A model, its optimizer and schedule."""
    model = copy.deepcopy(start())
    optimizer = rw.Optimizer(model)
    return model, optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 2)


def train(model: nn.Module, optimizer: Any, scheduler: Any = None) -> None:
    """One step."""
    model(torch.randn(8, 6)).square().mean().backward()
    optimizer.step()
    if scheduler is not None:
        scheduler.step()
    optimizer.zero_grad()


def adapter_seeds(folder: Path) -> list[bytes]:
    return [rw.save(adapted(), folder).read_bytes()]


def read_adapter_file(content: bytes, folder: Path) -> None:
    (folder / "adapter.safetensors").write_bytes(content)
    rw.load(copy.deepcopy(network()), folder)


def checkpoint_seeds(folder: Path) -> list[bytes]:
    model, optimizer, scheduler = training()
    train(model, optimizer, scheduler)
    path = folder / "checkpoint.safetensors"
    parts = {"model": model, "optimizer": optimizer, "scheduler": scheduler}
    save_training(path, **parts, progress={"step": 1})
    return [path.read_bytes()]


def read_checkpoint(content: bytes, folder: Path) -> None:
    path = folder / "checkpoint.safetensors"
    path.write_bytes(content)
    model, optimizer, scheduler = training()
    load_training(path, model=model, optimizer=optimizer, scheduler=scheduler)
    # What is let in can go on, or the guard tells why it cannot.
    try:
        train(model, optimizer, scheduler)
    except FloatingPointError as error:
        raise ValueError(f"{path}: {error}") from error


def peft_seeds(folder: Path) -> list[bytes]:
    rw.export_lora(adapted(), folder, compact=True)
    names = ("adapter_config.json", "adapter_model.safetensors")
    config, tensors = ((folder / name).read_bytes() for name in names)
    patterns = config.replace(b'"alpha_pattern": {}', b'"alpha_pattern": {"0": 3, "[a-z]+.x": 1}')
    return [SEPARATOR.join((config, tensors)), SEPARATOR.join((patterns, tensors))]


def read_peft_folder(content: bytes, folder: Path) -> None:
    config, _, tensors = content.partition(SEPARATOR)
    (folder / "adapter_config.json").write_bytes(config)
    (folder / "adapter_model.safetensors").write_bytes(tensors)
    rw.load(copy.deepcopy(network()), folder)


def plain_seeds(folder: Path) -> list[bytes]:
    model = copy.deepcopy(network())
    rw.factorize_(model, rank=1)
    save_plain(rw.shrink(model), folder)
    return [(folder / "model.safetensors").read_bytes()]


def read_plain(content: bytes, folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(content)
    try:
        load_plain(network(), folder / "model.safetensors")
    except RuntimeError as error:
        # By its documentation, of torch's `load_state_dict`.
        raise ValueError(f"model.safetensors: {error}") from error
    except Exception as error:
        if type(error).__name__ == "SafetensorError":
            raise ValueError(f"model.safetensors: {error}") from error
        raise


def doctor_adapter(content: bytes, folder: Path) -> None:
    (folder / "adapter.safetensors").write_bytes(content)
    findings_of(folder / "adapter.safetensors")


def doctor_lora(content: bytes, folder: Path) -> None:
    config, _, tensors = content.partition(SEPARATOR)
    (folder / "adapter_config.json").write_bytes(config)
    (folder / "adapter_model.safetensors").write_bytes(tensors)
    findings_of(folder)


LOADERS = (
    Loader("adapter", adapter_seeds, read_adapter_file, (of_tensors,)),
    Loader("checkpoint", checkpoint_seeds, read_checkpoint, (of_tensors,)),
    Loader("peft", peft_seeds, read_peft_folder, (of_json, of_tensors)),
    Loader("plain", plain_seeds, read_plain, (of_tensors,)),
    Loader("doctor-adapter", adapter_seeds, doctor_adapter, (of_tensors,)),
    Loader("doctor-lora", peft_seeds, doctor_lora, (of_json, of_tensors)),
)
