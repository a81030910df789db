"""Choosing layers, and the dry run."""

import re
import warnings

import pytest
import torch
from torch import nn

from machines import machine
from rankwise.nn import LowRankLinear
from rankwise.surgery.adapt import adapt_
from rankwise.surgery.count import count_parameters
from rankwise.surgery.plan import plan
from rankwise.surgery.select import collapse


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query, self.key = nn.Linear(6, 6), nn.Linear(6, 4)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention, self.norm = Attention(), nn.LayerNorm(6)
        self.output = nn.ModuleDict({"dense": nn.Linear(6, 6)})


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 6)
        self.layer = nn.ModuleList([Block() for _ in range(12)])
        self.conv = nn.Conv2d(1, 2, 3)
        self.classifier = nn.Linear(6, 2)


def adapted(model: nn.Module, **options) -> set[str]:
    return {layer.name for layer in plan(model, **options).adapted}


def test_a_glob_matches_the_full_name_or_a_dotted_end():
    assert adapted(Net(), select="query") == {f"layer.{i}.attention.query" for i in range(12)}
    assert adapted(Net(), select="output.dense") == {f"layer.{i}.output.dense" for i in range(12)}
    assert adapted(Net(), select="layer.1.attention.*") == {
        "layer.1.attention.query",
        "layer.1.attention.key",
    }
    assert adapted(Net(), select="layer.1.*.query") == {"layer.1.attention.query"}


def test_an_end_that_is_not_dotted_does_not_match():
    with pytest.raises(ValueError, match="'uery' matches no linear layer"):
        plan(Net(), select="uery")


def test_regex_type_predicate_and_sequence_choose_layers():
    assert adapted(Net(), select=re.compile(r"^layer\.(3|5)\..*key$")) == {
        "layer.3.attention.key",
        "layer.5.attention.key",
    }
    assert len(adapted(Net(), select=nn.Linear)) == 37
    assert adapted(Net(), select=lambda name, module: module.out_features == 2) == {"classifier"}
    assert len(adapted(Net(), select=["query", re.compile("classifier")])) == 13
    assert len(adapted(Net())) == 37


def test_exclude_takes_layers_out_of_what_is_selected():
    assert len(adapted(Net(), exclude=["classifier", "key"])) == 24
    reasons = {layer.name: layer.reason for layer in plan(Net(), exclude="classifier").layers}
    assert reasons["classifier"] == "excluded"


@pytest.mark.parametrize("argument", ["select", "exclude"])
@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("qeury", r"Did you mean 'query'\?"),
        ("outptu.dense", r"Did you mean 'output.dense'"),
        ("layer", r"contains 36 of them: write 'layer\.\*'"),
        ("embed", "It matches 'embed', of type Embedding"),
        ("no_such_thing_at_all", r"The linear layers are: layer\.\*\.attention\.query \(12x\), "),
        (re.compile("qeury"), "regex 'qeury' matches no linear layer"),
        (nn.Conv2d, "Conv2d matches no linear layer. The linear layers of the model are of type"),
        (["query", "qeury"], "'qeury' matches no linear layer"),
    ],
)
def test_a_pattern_without_a_match_is_an_error_that_says_what_there_is(argument, pattern, message):
    with pytest.raises(ValueError, match=message) as error:
        plan(Net(), **{argument: pattern})
    assert f"`{argument}`" in str(error.value)


def test_layers_are_listed_once_whatever_their_index():
    with pytest.raises(ValueError) as error:
        plan(Net(), select="qeury")
    assert str(error.value).count("attention.query") == 1
    assert collapse("layer.11.mlp.0.dense") == "layer.*.mlp.*.dense"


def test_a_selection_of_the_wrong_type_is_a_type_error():
    with pytest.raises(TypeError, match="`select` must be a glob"):
        plan(Net(), select=3)
    with pytest.raises(TypeError, match="`model` must be a torch.nn.Module, got list"):
        plan([nn.Linear(2, 2)])


@pytest.mark.parametrize("rank", [0, -1])
def test_a_rank_below_one_is_an_error(rank):
    with pytest.raises(ValueError, match=f"`rank` must be at least 1, got {rank}"):
        plan(Net(), rank=rank)


@pytest.mark.parametrize("rank", [2.0, True, "8"])
def test_a_rank_that_is_no_integer_is_an_error(rank):
    with pytest.raises(TypeError, match="`rank` must be an int"):
        plan(Net(), rank=rank)


def test_every_module_with_parameters_has_a_row_and_a_reason_if_left_out():
    model = Net()
    planned = plan(model, select="query", min_features=6)
    by_name = {layer.name: layer for layer in planned.layers}
    assert by_name["layer.0.attention.query"].reason == ""
    assert by_name["layer.0.attention.key"].reason == "not selected"
    assert "Embedding is not a linear map" in by_name["embed"].reason
    assert "Conv2d is not a linear map" in by_name["conv"].reason
    owners = {n.rpartition(".")[0] for n, _ in model.named_parameters()}
    assert owners == set(by_name)


def test_small_layers_are_left_out():
    by_name = {layer.name: layer for layer in plan(Net(), min_features=5).layers}
    assert by_name["classifier"].reason == "smaller than min_features=5"
    assert by_name["layer.0.attention.query"].reason == ""


def test_the_rank_is_clipped_to_what_a_matrix_can_have():
    by_name = {layer.name: layer for layer in plan(Net(), rank=5).layers}
    assert (by_name["classifier"].rank, by_name["classifier"].note) == (2, "rank 5 clipped")
    assert (by_name["layer.0.output.dense"].rank, by_name["layer.0.output.dense"].note) == (5, "")


def test_planned_parameters_are_those_that_adapt_makes():
    model = Net()
    options = {"rank": 3, "exclude": ["key", "classifier"], "train": ["classifier", "norm"]}
    planned = plan(model, **options)
    before = count_parameters(model).total
    assert adapt_(model, **options) == planned
    counted = count_parameters(model)
    assert planned.total == before
    assert planned.factors == counted.factors == counted.total - before
    assert planned.trainable == counted.trainable
    assert counted.dense == 14 + 12 * 12


def test_planning_changes_nothing():
    model = Net()
    before = {name: p.clone() for name, p in model.named_parameters()}
    random = torch.get_rng_state()
    plan(model, rank=4)
    assert all(torch.equal(before[n], p) and p.requires_grad for n, p in model.named_parameters())
    assert torch.equal(random, torch.get_rng_state())


def test_the_table_is_aligned_and_groups_equal_layers():
    text = str(plan(Net(), rank=2, select="query"))
    lines = text.splitlines()
    row = next(line for line in lines if "attention.query" in line)
    assert row.split() == ["layer.*.attention.query", "12", "Linear", "6x6", "2", "336"]
    assert lines[0].index("kind") == row.index("Linear")
    assert "adapted: 12 layers, 336 parameters in factors" in text
    assert "dense, trained: none" in text
    assert text.isascii()


def test_the_table_names_dense_parameters():
    text = str(plan(Net(), select="query", train="classifier"))
    assert "dense, trained: 14 parameters (classifier.weight, classifier.bias)" in text


def test_the_output_projection_of_multihead_attention_is_left_out():
    model = nn.Sequential(nn.MultiheadAttention(8, 2), nn.Linear(8, 8))
    by_name = {layer.name: layer for layer in plan(model).layers}
    assert by_name["0.out_proj"].reason.startswith("MultiheadAttention reads its weight")
    assert "MultiheadAttention is not a linear map" in by_name["0"].reason
    adapt_(model)
    x = torch.randn(3, 1, 8)
    assert model[0](x, x, x)[0].shape == x.shape


def test_layers_that_the_transformer_encoder_reads_are_left_out_and_evaluation_still_runs():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = nn.Sequential(nn.Linear(8, 8), nn.TransformerEncoder(layer, 1), nn.Linear(8, 8)).eval()
    x = torch.randn(2, 3, 8)
    with torch.no_grad():
        before = model(x)
        assert {p.name for p in adapt_(model).adapted} == {"0", "2"}
        assert torch.equal(model(x), before)


def test_a_module_used_twice_is_planned_once_under_all_its_names():
    linear = nn.Linear(4, 4)
    model = nn.Sequential(linear, nn.Tanh(), linear)
    (row,) = plan(model, select="2").layers
    assert (row.name, row.reason, row.note) == ("0", "", "rank 8 clipped; also named 2")
    (row,) = plan(model, exclude="2").layers
    assert row.reason == "excluded"


def test_a_tied_weight_is_noted_and_may_be_adapted():
    model = nn.ModuleDict({"embed": nn.Embedding(9, 4), "head": nn.Linear(4, 9, bias=False)})
    model["head"].weight = model["embed"].weight
    by_name = {layer.name: layer for layer in plan(model, rank=2).layers}
    assert by_name["head"].note == "weight shared with embed, adapted here only"


def test_an_empty_layer_is_left_out_and_a_lazy_one_refused():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        empty, _ = plan(nn.Sequential(nn.Linear(0, 4), nn.Linear(4, 4))).layers
    assert empty.reason == "is empty"
    with pytest.raises(ValueError, match="lazy parameters without a shape; run one batch"):
        plan(nn.Sequential(nn.LazyLinear(4), nn.Linear(4, 4)))


def test_a_model_that_is_adapted_already_is_planned_as_such():
    model = Net()
    adapt_(model, rank=2, select="query")
    by_name = {layer.name: layer for layer in plan(model).layers}
    assert by_name["layer.0.attention.query"].reason == "already low rank (2)"
    assert isinstance(model.layer[0].attention.query, LowRankLinear)


class Named(nn.Module):
    """Takes a batch by names, or one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.word, self.map = nn.Embedding(10, 6), nn.Linear(6, 6)
        self.head = nn.Linear(6, 2)

    def forward(self, ids, mask):
        return self.head((self.map(self.word(ids)) * mask[..., None]).sum(1))


def test_an_example_predicts_a_step_of_this_plan_and_changes_nothing_else():
    model, ids, mask = Named(), torch.tensor([[1, 2, 3]]), torch.ones(1, 3)
    bare = plan(model, rank=2, select="map", train="head")
    assert bare.step is None and "frozen model" not in str(bare)
    batches = ({"ids": ids, "mask": mask}, (ids, mask))
    named, ordered = (
        plan(model, rank=2, select="map", train="head", example=batch, machine=machine(flops=1e3))
        for batch in batches
    )
    assert named == ordered and named.layers == bare.layers and named.trainable == bare.trainable
    assert str(named).startswith(str(bare)) and "over the frozen model" in str(named)
    found = named.step
    assert found.lora.gradients == 4 * (2 * 12 + 14)
    assert found.low_rank.weights == 4 * (60 + 42 + 14 + 2 * 14)
    # Two maps of three rows and of one; of the head a gradient of each kind.
    assert found.frozen.forward == pytest.approx((2 * 3 * 36 + 2 * 12) / 1e3)
    assert found.frozen.backward == pytest.approx(2 * (2 * 12) / 1e3)


def test_a_tensor_is_an_example_and_frozen_layers_are_counted_as_such():
    model = nn.Sequential(nn.Linear(6, 6), nn.GELU(), nn.Linear(6, 6))
    example = torch.ones(4, 6)
    every, last = (
        plan(model, rank=1, select=s, example=example, machine=machine(flops=1.0)).step
        for s in (None, "2")
    )
    assert every.frozen.backward == 2 * 4 * 36 and last.frozen.backward == 0.0
    assert every.frozen.forward == last.frozen.forward
    assert every.full == last.full


def test_an_adapted_model_is_planned_as_it_is():
    model = nn.Sequential(nn.Linear(6, 6), nn.GELU(), nn.Linear(6, 6))
    adapt_(model, rank=1, select="0")
    found = plan(model, rank=1, example=torch.ones(4, 6), machine=machine(flops=1.0))
    assert [layer.name for layer in found.adapted] == ["2"]
    assert found.step.low_rank.seconds > found.step.frozen.seconds


@pytest.mark.parametrize(
    ("example", "told"),
    [
        (torch.ones(4, 5), r"float32 \(4, 5\)"),
        (torch.ones(4, 6).long(), r"int64 \(4, 6\)"),
        ({"input_ids": torch.ones(4, 6)}, r"input_ids=float32 \(4, 6\)"),
        ((torch.ones(4, 6), 3), r"float32 \(4, 6\), int"),
        ("words", "str"),
    ],
    ids=["width", "type", "name", "too many", "no tensor"],
)
def test_an_example_that_the_model_does_not_take_is_told(example, told):
    with pytest.raises(ValueError, match=f"does not take the `example`, {told}: "):
        plan(nn.Sequential(nn.Linear(6, 3)), rank=1, example=example, machine=machine(flops=1.0))
