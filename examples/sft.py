"""A small language model of low rank learns movie reviews, by TRL's `SFTTrainer`.

`python examples/sft.py` takes half a minute on a CPU. The model is random and low rank as a whole;
for a pretrained one write `rw.adapt_(model, exclude="lm_head")` in place of `rw.factorize_`.
"""

import argparse

import torch
from datasets import Dataset
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
from trl import SFTConfig, SFTTrainer

import rankwise as rw
from rankwise.integrations.transformers import RankwiseCallback
from rankwise.recipes.builtin import minilm_folder, movie_reviews

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--steps", type=int, default=100)
parser.add_argument("--output", default="runs/sft")
options = parser.parse_args()

torch.manual_seed(0)
reviews = [{"text": example.text} for example in movie_reviews(seed=0).train[:4000]]
known = AutoTokenizer.from_pretrained(minilm_folder(), eos_token="[SEP]")
tokenizer = known.train_new_from_iterator((row["text"] for row in reviews), vocab_size=2000)
model = LlamaForCausalLM(
    LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=128, intermediate_size=256, num_hidden_layers=2,
        num_attention_heads=4, pad_token_id=tokenizer.pad_token_id,
    )
)  # fmt: skip
before = sum(p.numel() for p in model.parameters())
# `SFTTrainer` reads the weight of the output layer in place of calling it: that stays dense.
rw.factorize_(model, rank=32, init=rw.init.Random(), exclude="lm_head")
rank_rule = rw.Budget(parameters=before // 5, every=20)
optimizer = rw.Optimizer(model, lr=0.08, max_step=0.04, rank_rule=rank_rule)

trainer = SFTTrainer(
    model=model,
    args=SFTConfig(
        output_dir=options.output,
        max_steps=options.steps,
        per_device_train_batch_size=8,
        max_length=40,
        logging_steps=10,
        save_strategy="no",
        use_cpu=True,
        bf16=False,
    ),  # fmt: skip
    train_dataset=Dataset.from_list(reviews),
    processing_class=tokenizer,
    optimizers=(optimizer, None),
    callbacks=[RankwiseCallback()],
)
trainer.train()
numbers = sum(p.numel() for p in rw.shrink(model).parameters())
print(f"{numbers:,} of {before:,} parameters, ranks {[x.rank for _, x in optimizer.layers]}")
