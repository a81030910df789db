"""A sentence encoder becomes a classifier of movie reviews, by Hugging Face's `Trainer`.

`python examples/trainer.py` takes half a minute on a CPU; with `--resume` the run goes on from its
last checkpoint, exactly.
"""

import argparse

from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
)

import rankwise as rw
from rankwise.integrations.transformers import RankwiseCallback
from rankwise.recipes.builtin import minilm_folder, movie_reviews

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--steps", type=int, default=60)
parser.add_argument("--output", default="runs/trainer")
parser.add_argument("--resume", action="store_true")
options = parser.parse_args()

data = movie_reviews(seed=0)
tokenizer = AutoTokenizer.from_pretrained(minilm_folder())
model = AutoModelForSequenceClassification.from_pretrained(minilm_folder(), num_labels=2)
print(rw.adapt_(model, rank=8, select="*.layer.*", train=["classifier", "*.pooler.*"]))
optimizer = rw.Optimizer(model, rank_rule=rw.Budget(parameters=166_000))


def encoded(examples):
    return [
        {**tokenizer(e.text, truncation=True, max_length=40), "labels": e.label} for e in examples
    ]


trainer = Trainer(
    model=model,
    args=TrainingArguments(
        output_dir=options.output,
        max_steps=options.steps,
        per_device_train_batch_size=16,
        warmup_steps=options.steps // 10,
        logging_steps=10,
        save_steps=20,
        save_total_limit=1,
        use_cpu=True,
    ),  # fmt: skip
    train_dataset=encoded(data.train),
    eval_dataset=encoded(data.held_out[:200]),
    data_collator=DataCollatorWithPadding(tokenizer),
    optimizers=(optimizer, None),
    callbacks=[RankwiseCallback()],
)
trainer.train(resume_from_checkpoint=options.resume)
print(trainer.evaluate())
print("ranks", [layer.rank for _, layer in optimizer.layers])
