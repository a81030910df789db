"""The language-model task: SmolLM2-135M on the King James Bible, both unpacked from packages.

The text is Debian's `bible-kjv-text`, in a format that only its reader (`bible-kjv`) opens, so this
task needs a machine with `apt-get`; it says so where there is none.
"""

import json
import re
import shutil
import subprocess
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rankwise.recipes.packages import Package, archive_of

MAX_TOKENS = 128
MIN_TOKENS = 32
PASSAGES = 4000
# The reader fails beyond this verse.
ALL_VERSES = "ge1:1-rev22:12"


def king_james(cache: Path) -> list[str]:
    """All verses, one string each, without their references."""
    file = cache / "king-james.txt"
    if not file.exists():
        if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
            raise RuntimeError(
                "the King James text comes from a Debian package; this needs apt-get"
            )
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as scratch:
            packages = ["bible-kjv", "bible-kjv-text"]
            subprocess.run(["apt-get", "download", "-q", *packages], cwd=scratch, check=True)
            for package in Path(scratch).glob("*.deb"):
                subprocess.run(["dpkg-deb", "-x", package, scratch], check=True)
            reader = [f"{scratch}/usr/bin/bible", "-f", "-p", f"{scratch}/usr/lib", ALL_VERSES]
            text = subprocess.run(reader, capture_output=True, text=True, check=True).stdout
        verses = [re.sub(r"^\S+ ", "", line) for line in text.splitlines()]
        partial = file.with_suffix(".part")
        partial.write_text("\n".join(verses))
        partial.replace(file)
    return file.read_text().splitlines()


def smollm2(cache: Path, package: Package) -> tuple[nn.Module, Any]:
    """The model in float32 and its tokenizer, from the GGUF file in a package; converted once."""
    from safetensors.torch import load_file, save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    folder = cache / "smollm2-135m"
    if not (folder / "model.safetensors").exists():
        with tempfile.TemporaryDirectory() as scratch:
            with zipfile.ZipFile(archive_of(package)) as archive:
                (member,) = (name for name in archive.namelist() if name.endswith(".gguf"))
                Path(scratch, "model.gguf").write_bytes(archive.read(member))
            tokenizer = AutoTokenizer.from_pretrained(scratch, gguf_file="model.gguf")
            model = AutoModelForCausalLM.from_pretrained(
                scratch, gguf_file="model.gguf", dtype=torch.float32
            )
        tokenizer.save_pretrained(folder)
        config = {k: v for k, v in model.config.to_dict().items() if "quantization" not in k}
        (folder / "architecture.json").write_text(json.dumps(config, default=str))
        weights = {
            k: v.contiguous() for k, v in model.state_dict().items() if k != "lm_head.weight"
        }
        save_file(weights, folder / "model.part")
        (folder / "model.part").replace(folder / "model.safetensors")
    config = json.loads((folder / "architecture.json").read_text())
    model = LlamaForCausalLM(LlamaConfig.from_dict({**config, "dtype": None}))
    missing, unexpected = model.load_state_dict(
        load_file(folder / "model.safetensors"), strict=False
    )
    assert set(missing) <= {"lm_head.weight"} and not unexpected
    model.tie_weights()
    return model.float(), AutoTokenizer.from_pretrained(folder)


def passages(tokenizer: Any, verses: list[str]) -> list[list[int]]:
    """Runs of whole verses of at most `MAX_TOKENS` tokens."""
    found: list[list[int]] = []
    current: list[int] = []
    for verse in verses:
        tokens = tokenizer(verse.strip() + "\n")["input_ids"]
        if len(current) + len(tokens) > MAX_TOKENS:
            if len(current) >= MIN_TOKENS:
                found.append(current[:MAX_TOKENS])
            current = []
        current = current + tokens
        if len(found) == PASSAGES:
            break
    return found


def collate(batch: list[list[int]]) -> dict[str, Tensor]:
    """Padded token ids, mask and labels of a batch of passages."""
    longest = max(map(len, batch))
    ids = torch.tensor([p + [0] * (longest - len(p)) for p in batch])
    mask = torch.tensor([[1] * len(p) + [0] * (longest - len(p)) for p in batch])
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.where(mask.bool(), -100)}


@torch.no_grad()
def validation_nll(model: nn.Module, held_out: list[list[int]]) -> float:
    """Mean negative log-likelihood per token."""
    model.eval()
    total = tokens = 0.0
    for passage in held_out:
        count = len(passage) - 1
        total += model(**collate([passage])).loss.item() * count
        tokens += count
    model.train()
    return total / tokens
