"""TRL's `SFTTrainer`, the heir of `Trainer` that most people use for language models."""

from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import rankwise as rw
from conftest import BAD, GOOD, PLAIN
from loops import largest_defect, optimizer_of, ranks, same_weights
from processes import on_processes
from rankwise.integrations.transformers import RankwiseCallback
from scenes import distance, weights

# Of datasets and TRL, of their own dependencies.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


def tokenizer() -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["<pad>", "<unk>", "<eos>", *GOOD, *BAD, *PLAIN]
    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", unk_token="<unk>", eos_token="<eos>"
    )


def language_model(**options) -> LlamaForCausalLM:
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=20, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
            num_attention_heads=2, pad_token_id=0, bos_token_id=2, eos_token_id=2,
        )
    )  # fmt: skip
    rw.adapt_(model, rank=3, **options)
    return model


def trainer_of(model: LlamaForCausalLM, folder: Path, **options):
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    texts = [f"the {good} film was {bad}" for good in GOOD for bad in BAD]
    options = {"max_steps": 8, "use_cpu": True, "bf16": False, "save_strategy": "no", **options}
    return SFTTrainer(
        model=model,
        args=SFTConfig(str(folder), logging_steps=1, disable_tqdm=True, **options),
        train_dataset=Dataset.from_dict({"text": texts}),
        processing_class=tokenizer(),
        optimizers=(optimizer_of(model), None),
        callbacks=[RankwiseCallback()],
    )


def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(tmp_path):
    whole = trainer_of(
        language_model(exclude="lm_head"), tmp_path, save_strategy="steps", save_steps=4
    )
    whole.train()
    again = trainer_of(language_model(exclude="lm_head"), tmp_path / "again")
    before = ranks(again.model)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert ranks(again.model) == ranks(whole.model) != before
    assert same_weights(again.model, whole.model)
    assert largest_defect(whole.model) < 1e-5


def on_two(rank, folder):
    AcceleratorState._reset_state(reset_partial_state=True)
    model = language_model(exclude="lm_head").double()
    rw.distributed.prepare(model)
    trainer_of(model, folder, per_device_train_batch_size=4).train()
    return ranks(model), weights(model)


def test_two_processes_are_one_on_the_same_sentences(tmp_path):
    found = on_processes(2, on_two, tmp_path)
    model = language_model(exclude="lm_head").double()
    trainer_of(model, tmp_path, per_device_train_batch_size=8).train()
    assert ranks(model) != ranks(language_model(exclude="lm_head"))
    for taken, end in found:
        end.pop("ddp_anchor")
        assert taken == ranks(model) and distance(end, weights(model)) < 1e-9


def test_the_output_layer_must_be_left_out(tmp_path):
    trainer = trainer_of(language_model(), tmp_path)
    with pytest.raises(ValueError, match="`exclude='lm_head'`"):
        trainer.train()
