"""accelerate on several processes: the run of one process on all batches, with changing ranks."""

import pytest
import torch
from accelerate import Accelerator, DataLoaderConfiguration, FullyShardedDataParallelPlugin
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from torch import nn
from torch.utils.data import DataLoader

import rankwise as rw
from loops import classifier, optimizer_of, ranks, rows
from processes import on_processes
from scenes import distance, same

STEPS = 6
HALVES = {"gradient_accumulation_steps": 2}


@pytest.fixture(autouse=True)
def fresh_state():
    """accelerate's options are the process's, once they are set."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def accelerator_of(**options) -> Accelerator:
    AcceleratorState._reset_state(reset_partial_state=True)
    # Batches of the loader are global: a scheduler then steps once a step on any number.
    split = DataLoaderConfiguration(split_batches=True)
    return Accelerator(cpu=True, dataloader_config=split, **options)


def run(accelerator: Accelerator, model: nn.Module, count: int = STEPS * 16):
    """A user's loop: norms before clipping, ranks after each batch, the state in the end."""
    optimizer = optimizer_of(model)
    loader = DataLoader(rows(count), batch_size=8)
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, STEPS)
    wrapped, optimizer, loader, scheduler = accelerator.prepare(model, optimizer, loader, scheduler)
    norms, path = [], []
    for batch in loader:
        with accelerator.accumulate(wrapped):
            accelerator.backward(wrapped(**batch).loss)
            if accelerator.sync_gradients:
                norms.append(float(accelerator.clip_grad_norm_(wrapped.parameters(), 0.5)))
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
        path.append(ranks(model))
    return norms, path, whole(accelerator.unwrap_model(wrapped))


def whole(model: nn.Module) -> dict[str, torch.Tensor]:
    parts = {n: t for n, t in model.state_dict().items() if t.is_floating_point()}
    return {
        n: (t.full_tensor() if hasattr(t, "full_tensor") else t).clone() for n, t in parts.items()
    }


def exact(head: bool) -> nn.Module:
    model = classifier(dropout=0.0).double()
    model.classifier.requires_grad_(head)
    return model


def prepared(model: nn.Module) -> tuple[nn.Module, rw.distributed.Replicas]:
    return model, rw.distributed.prepare(model)


def loops(rank, folder):
    found = {}
    for head in (True, False):
        model, replicas = prepared(exact(head))
        accelerator = accelerator_of(**HALVES)
        found[head] = run(accelerator, model), replicas.traffic.messages
        accelerator.save_state(folder / str(head))
    model, _ = prepared(classifier())
    found["bfloat16"] = run(accelerator_of(mixed_precision="bf16"), model)
    # The last batch has 3 rows of 8: accelerate fills it up, so that all have equally many.
    model, _ = prepared(exact(True))
    found["uneven"] = run(accelerator_of(), model, 8 * 3 + 3)
    with pytest.raises(ValueError, match=r"Call `rankwise.distributed.prepare\(model\)` before"):
        run(accelerator_of(), classifier())
    return found


@pytest.mark.parametrize("world", [2, 4])
def test_accumulated_and_clipped_steps_are_those_of_one_process(world, tmp_path):
    outcomes = on_processes(world, loops, tmp_path)
    for head in (True, False):
        norms, path, state = run(accelerator_of(**HALVES), exact(head))
        assert len({str(step) for step in path}) > 2
        for found in outcomes:
            (seen, taken, end), messages = found[head]
            assert messages == STEPS and taken == path
            assert seen == pytest.approx(norms, rel=1e-10)
            assert end.keys() == state.keys() and distance(end, state) < 1e-10
        # One process reads what several have written, prepared or not.
        accelerator, model = accelerator_of(), exact(head)
        _, optimizer = accelerator.prepare(model, optimizer_of(model))
        accelerator.load_state(tmp_path / str(head))
        assert same([whole(model), outcomes[0][head][0][2]]) and optimizer.optimizer.steps == STEPS
    for kind in (True, False, "bfloat16", "uneven"):
        ends = [
            found[kind][0][2] if isinstance(kind, bool) else found[kind][2] for found in outcomes
        ]
        assert same(ends), kind
    assert {t.dtype for t in outcomes[0]["bfloat16"][2].values()} == {torch.float32}
    assert outcomes[0]["bfloat16"][1][-1] != ranks(classifier())
    assert len(outcomes[0]["uneven"][0]) == 4


def sharded(rank):
    """accelerate shards on GPUs alone, so its state is told here that it does."""

    def shard(ignored):
        plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2, ignored_modules=ignored, auto_wrap_policy="transformer_based_wrap",
            transformer_cls_names_to_wrap=["BertLayer"], cpu_ram_efficient_loading=False,
        )  # fmt: skip
        accelerator = accelerator_of(fsdp_plugin=plugin)
        accelerator.state.distributed_type = DistributedType.FSDP
        accelerator.state.fsdp_plugin = plugin
        return accelerator

    model, replicas = prepared(exact(True))
    with pytest.raises(ValueError, match="factors of layer .* are sharded"):
        run(shard(None), model)
    model, replicas = prepared(exact(True))
    outcome = run(shard([nn.ParameterList(replicas.factors)]), model)
    return outcome, sum(hasattr(p, "placements") for p in model.parameters())


def test_its_fsdp2_leaves_a_list_of_factors_alone():
    norms, path, state = run(accelerator_of(), exact(True))
    outcomes = on_processes(2, sharded)
    for (seen, taken, end), parts in outcomes:
        assert parts > 20
        assert taken == path
        assert seen == pytest.approx(norms, rel=1e-10)
        assert distance(end, state) < 1e-10
    assert same([end for (_, _, end), _ in outcomes])
