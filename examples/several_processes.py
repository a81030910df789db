"""Movie reviews on several processes: each takes its part of every batch, and ranks change alike.

`torchrun --nproc-per-node 2 examples/several_processes.py`; alone it takes the same steps.
"""

import argparse
import os
from itertools import islice

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import rankwise as rw
from rankwise.recipes.builtin import minilm_folder, movie_reviews

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--steps", type=int, default=60)
parser.add_argument("--output", default="runs/processes")
options = parser.parse_args()
rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
if world > 1:
    dist.init_process_group("gloo")
torch.manual_seed(0)
data, tokenizer = movie_reviews(seed=0), AutoTokenizer.from_pretrained(minilm_folder())
model = AutoModelForSequenceClassification.from_pretrained(minilm_folder(), num_labels=2)
rw.adapt_(model, rank=8, select="*.layer.*", train=["classifier", "*.pooler.*"])
replicas = rw.distributed.prepare(model, dtype=torch.bfloat16)
optimizer = rw.Optimizer(model, rank_rule=rw.Budget(parameters=166_000))
wrapped = DistributedDataParallel(model) if world > 1 else model


def encoded(examples):
    words = tokenizer([e.text for e in examples], padding=True, return_tensors="pt")
    return {**words, "labels": torch.tensor([e.label for e in examples])}


def loader(examples, size):
    part = DistributedSampler(examples, world, rank)
    return DataLoader(examples, size, sampler=part, collate_fn=encoded)


for batch in islice(loader(data.train, 32 // world), options.steps):
    wrapped(**batch).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
rw.save(model, options.output)

held_out = data.held_out[:200]
with torch.no_grad():
    hits = sum((model(**b).logits.argmax(1) == b["labels"]).sum() for b in loader(held_out, 50))
if world > 1:
    dist.all_reduce(hits)
    dist.destroy_process_group()
if rank == 0:
    print(f"accuracy {hits / 200:.1%}  ranks {[layer.rank for _, layer in optimizer.layers]}")
    print(f"{replicas.traffic.last:,} bytes of factor gradients were sent in the last step")
