"""`factorize_` against dense twins of every kind of layer; plans that tell the truth."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import rankwise as rw
from cases import close
from rankwise.init import Random, TruncatedSVD
from rankwise.nn import Factored, LowRankConv1d, LowRankConv2d, LowRankEmbedding, LowRankLinear
from rankwise.nn.attention import SplitAttention
from rankwise.nn.tucker import TuckerConv2d
from rankwise.optim.rank_rule import FixedRank
from rankwise.optim.update_rule import SGD
from rankwise.surgery.ranks import break_even


class Everything(nn.Module):
    """One layer of each kind, small enough to look at."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(12, 8, padding_idx=0)
        self.sequence = nn.Conv1d(8, 9, 3, stride=2, padding=1, dilation=2)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.image = nn.Conv2d(4, 7, (3, 2), stride=(1, 2), padding=(2, 0), bias=False)
        self.grouped = nn.Conv2d(4, 4, 3, groups=4)
        self.out = nn.Linear(9, 6)

    def forward(self, index):
        x = self.table(index)
        x = x + self.attention(x, x, x, need_weights=False)[0]
        z = self.sequence(x.mT)
        image = self.image(self.grouped(x.reshape(len(x), 4, 6, -1)))
        return self.out(z.mT).mean(1) + image.mean()


def everything() -> Everything:
    torch.manual_seed(0)
    return Everything().double()


def indices(draw) -> torch.Tensor:
    return torch.randint(0, 12, (3, 12), generator=draw)


def low_rank_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {n: m.factors().dense() for n, m in model.named_modules() if isinstance(m, Factored)}


def weight_gradient(model: nn.Module, name: str) -> torch.Tensor:
    part = name.removeprefix("attention.")
    if part in ("q_proj", "k_proj", "v_proj"):
        return model.attention.in_proj_weight.grad.chunk(3)["qkv".index(part[0])]
    return model.get_submodule(name).weight.grad


def test_every_kind_of_layer_computes_what_its_densified_twin_does_with_all_gradients(draw):
    model, x = everything(), indices(draw)
    rw.factorize_(model, rank=2)
    kinds = {type(m) for m in model.modules() if isinstance(m, Factored)}
    assert kinds == {LowRankConv1d, LowRankConv2d, LowRankEmbedding, LowRankLinear}
    model(x).square().sum().backward()
    layers = {n: m for n, m in model.named_modules() if isinstance(m, Factored)}
    gradients = {n: m.gradient() for n, m in layers.items()}
    bases = {n: m.factors() for n, m in layers.items()}
    y = model(x).detach()
    rw.densify_(model)
    assert not any(isinstance(m, Factored | SplitAttention) for m in model.modules())
    twin = model(x)
    close(twin, y)
    twin.square().sum().backward()
    for name, (U, _, V) in bases.items():
        G = weight_gradient(model, name).flatten(1)
        for got, want in zip(gradients[name], (G @ V, G.mT @ U, U.mT @ G @ V), strict=True):
            close(got, want, 1e-11)


def test_truncated_svd_leaves_each_layer_its_best_approximation(draw):
    model = everything()
    before = {n: p.detach().flatten(1).clone() for n, p in model.named_parameters() if p.ndim > 1}
    rw.factorize_(model, rank=2, exclude="attention.*")
    for name, W in low_rank_weights(model).items():
        sigma = torch.linalg.svdvals(before[f"{name}.weight"])
        error = torch.linalg.matrix_norm(before[f"{name}.weight"] - W)
        close(error, sigma[2:].norm(), 1e-10)


def test_the_shrunk_copy_is_plain_torch_and_computes_the_same(draw):
    model, x = everything(), indices(draw)
    plan = rw.factorize_(model, rank=2)
    y = model(x).detach()
    small = rw.shrink(model)
    close(small(x).detach(), y)
    close(model(x).detach(), y)
    own = {type(m) for m in small.modules() if not type(m).__module__.startswith("torch.")}
    assert own == {Everything, SplitAttention}
    assert sum(p.numel() for p in small.parameters()) == plan.kept


def test_the_plan_changes_nothing_and_says_what_factorize_does(draw):
    model, x = everything(), indices(draw)
    names, y = [n for n, _ in model.named_modules()], model(x).detach()
    plan = rw.plan_factorize(model, rank=2, example=x)
    assert [n for n, _ in model.named_modules()] == names
    close(model(x).detach(), y, 0.0)
    assert model.training
    by_name = {layer.name: layer for layer in plan.layers}
    assert by_name["grouped"].reason.startswith("depthwise")
    # 3 sequences of 12 places; the convolution over them halves that.
    assert by_name["attention.q_proj"].products == 3 * 12 * 64
    assert by_name["attention.q_proj"].products_kept == 3 * 12 * 2 * 16
    assert by_name["sequence"].products == 3 * 5 * 9 * 24
    assert (by_name["table"].products, by_name["table"].products_kept) == (0, 3 * 12 * 2 * 8)
    assert rw.factorize_(model, rank=2).ranks == plan.ranks
    assert "removed" not in str(plan) and f"{plan.kept:,}" in str(plan)


def test_a_layer_stays_dense_where_its_rank_saves_nothing():
    model = nn.Sequential(nn.Linear(20, 10), nn.ReLU(), nn.Linear(10, 2))
    plan = rw.plan_factorize(model, rank=6)
    first, last = plan.layers
    assert first.rank == 6 == break_even(10, 20)
    assert last.rank == 0
    assert last.reason == "rank 6 would save nothing: at most 1 does"
    assert rw.plan_factorize(model, rank={"0": 6}).layers[1].reason == "not selected"
    for m, n in ((10, 20), (7, 7), (2, 1), (512, 10)):
        best = break_even(m, n)
        assert best * (m + n) < m * n <= (best + 1) * (m + n)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 6)
        self.out = nn.Linear(6, 11, bias=False)
        self.out.weight = self.table.weight

    def forward(self, index):
        return self.out(self.table(index).tanh())


def tied() -> Tied:
    torch.manual_seed(1)
    return Tied().double()


def test_tied_weights_stay_tied_and_take_one_step_by_the_gradient_of_both(draw):
    model, index = tied(), indices(draw) % 11
    plan = rw.factorize_(model, rank=3)
    assert model.table.U is model.out.U and model.table.V is model.out.V
    assert plan.kept == 3 * (11 + 6) == sum(p.numel() for p in model.parameters()) - 9
    W = model.table.factors().dense().requires_grad_()
    nn.functional.embedding(index, W).tanh().matmul(W.mT).square().sum().backward()
    optimizer = rw.Optimizer(model, lr=0.01, rule=SGD(), rank_rule=FixedRank(), max_step=1e9)
    assert [name for name, _ in optimizer.layers] == ["table"]
    model(index).square().sum().backward()
    U, _, V = model.table.factors()
    dK, dL, dS = model.table.gradient()
    for got, want in zip((dK, dL, dS), (W.grad @ V, W.grad.mT @ U, U.mT @ W.grad @ V), strict=True):
        close(got, want, 1e-11)
    optimizer.step()
    close(model.out.factors().dense(), model.table.factors().dense(), 0.0)
    small = rw.shrink(model)
    assert small.table[0].weight is small.out[1].weight
    close(small(index), model(index))
    rw.densify_(model)
    assert model.table.weight is model.out.weight
    close(small(index), model(index))


def test_tied_weights_stay_dense_where_one_of_them_has_to():
    plan = rw.plan_factorize(tied(), rank=3, exclude="out")
    assert not plan.factorized
    assert "also that of out, which stays dense" in plan.layers[0].reason
    with pytest.raises(ValueError, match="share one weight, but have rank 3 and 2"):
        rw.plan_factorize(tied(), rank={"table": 3, "out": 2})


@pytest.mark.parametrize("need_weights", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("masks", ["none", "padding", "causal", "both", "float"])
@pytest.mark.parametrize("packed", [True, False])
def test_split_attention_is_the_packed_one(packed, masks, batch_first, need_weights, draw):
    torch.manual_seed(0)
    sizes = {} if packed else {"kdim": 5, "vdim": 6}
    model = nn.MultiheadAttention(8, 2, batch_first=batch_first, **sizes).double()
    nn.init.normal_(model.out_proj.bias)
    if packed:
        nn.init.normal_(model.in_proj_bias)
    split = SplitAttention(model)
    q = torch.randn(3, 4, 8, generator=draw, dtype=torch.float64)
    k = torch.randn(3, 7, 8 if packed else 5, generator=draw, dtype=torch.float64)
    v = torch.randn(3, 7, 8 if packed else 6, generator=draw, dtype=torch.float64)
    options = {"need_weights": need_weights}
    if masks in ("padding", "both"):
        options["key_padding_mask"] = torch.arange(7) >= torch.tensor([[7], [5], [2]])
    if masks in ("causal", "both"):
        options["attn_mask"] = torch.ones(4, 7).triu(1).bool()
    if masks == "float":
        options["attn_mask"] = torch.randn(6, 4, 7, generator=draw, dtype=torch.float64)
        options["average_attn_weights"] = False
    if not batch_first:
        q, k, v = (t.transpose(0, 1) for t in (q, k, v))
    for got, want in zip(split(q, k, v, **options), model(q, k, v, **options), strict=True):
        assert (got is None) == (want is None)
        if want is not None:
            close(got, want)
    if masks == "none":
        one = [t[0] if batch_first else t[:, 0] for t in (q, k, v)]
        close(split(*one)[0], model(*one)[0])


def test_a_transformer_encoder_works_in_training_and_in_evaluation(draw):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True).double()
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    x = torch.randn(2, 5, 8, generator=draw, dtype=torch.float64)
    rw.factorize_(model, rank=4, select=["linear1", "linear2"])
    assert isinstance(model.layers[1].linear1, LowRankLinear)
    y = model(x)
    with torch.no_grad():
        close(model.eval()(x), y.detach())
        small = rw.shrink(model)
        assert type(small.layers[1].self_attn) is nn.MultiheadAttention
        close(small(x), y.detach())
    rw.densify_(model)
    with torch.no_grad():
        close(model.eval()(x), y.detach())


@pytest.mark.parametrize("select", [None, ["linear1", "linear2"]])
def test_a_transformer_encoder_with_padding_works_in_evaluation(select, draw):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 24, dropout=0.0, batch_first=True).double()
    model = nn.TransformerEncoder(layer, 2)
    x = torch.randn(2, 5, 8, generator=draw, dtype=torch.float64)
    padding = torch.arange(5) >= torch.tensor([[4], [3]])
    rw.factorize_(model, rank=2, select=select)
    y = model(x, src_key_padding_mask=padding).detach()
    with torch.no_grad():
        close(model.eval()(x, src_key_padding_mask=padding), y)
        close(rw.shrink(model)(x, src_key_padding_mask=padding), y)


def test_hugging_faces_conv1d_becomes_low_rank(draw):
    Conv1D = pytest.importorskip("transformers.pytorch_utils").Conv1D

    torch.manual_seed(0)
    model = nn.Sequential(Conv1D(6, 4)).double()
    nn.init.normal_(model[0].bias)
    x = torch.randn(3, 4, generator=draw, dtype=torch.float64)
    W, bias = model[0].weight.detach().mT.clone(), model[0].bias.detach().clone()
    rw.factorize_(model, rank=2)
    P, sigma, Qh = torch.linalg.svd(W)
    best = P[:, :2] @ torch.diag(sigma[:2]) @ Qh[:2]
    close(model(x), x @ best.mT + bias, 1e-10)


@pytest.mark.parametrize("padding", ["same", "valid", 1])
@pytest.mark.parametrize("kind", [nn.Conv1d, nn.Conv2d])
def test_padding_by_name_is_understood_or_refused(kind, padding, draw):
    torch.manual_seed(0)
    model = nn.Sequential(kind(6, 8, 3, padding=padding, dilation=2)).double()
    x = torch.randn(2, 6, *(9,) * (1 if kind is nn.Conv1d else 2), generator=draw).double()
    shape = model(x).shape
    rw.factorize_(model, rank=2)
    assert model(x).shape == shape
    uneven = nn.Sequential(kind(6, 8, 4, padding="same"))
    assert "one-sided" in rw.plan_factorize(uneven, rank=1).layers[0].reason


def test_random_factors_carry_the_variance_of_activations_and_gradients(draw):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(400, 300))
    norm = model[0].weight.norm()
    rw.factorize_(model, rank=20, init=Random(seed=3))
    W, norm = model[0].factors().dense(), norm.detach()
    torch.testing.assert_close(W.norm(), norm)
    x = torch.randn(20000, 400, generator=draw)
    W = W.detach()
    assert float(((x @ W.mT).square().sum(1).mean() / norm**2 - 1).abs()) < 0.02
    d = torch.randn(20000, 300, generator=draw)
    assert float(((d @ W).square().sum(1).mean() / norm**2 - 1).abs()) < 0.02
    again = nn.Sequential(nn.Linear(400, 300))
    again[0].weight.data.mul_(0).add_(norm / (400 * 300) ** 0.5)
    rw.factorize_(again, rank=20, init=Random(seed=3))
    torch.testing.assert_close(again[0].factors().dense(), W, rtol=1e-3, atol=1e-4)


def test_a_model_from_scratch_learns_through_all_kinds_of_layers(draw):
    model = Everything()
    index = indices(draw)
    rw.factorize_(model, rank=2, init=Random())
    optimizer = rw.Optimizer(model, lr=0.05, max_step=0.05)
    target = torch.tensor([0, 3, 5])
    first = float(cross_entropy(model(index), target).detach())
    for _ in range(60):
        optimizer.zero_grad()
        loss = cross_entropy(model(index), target)
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.1 * first


def test_augmented_integrators_see_the_gradient_of_an_embedding(draw):
    model, index = nn.Sequential(nn.Embedding(12, 8), nn.Flatten(), nn.Linear(96, 2)), indices(draw)
    model = model.double()
    rw.factorize_(model, rank=2, select="0")
    W = model[0].factors().dense().requires_grad_()
    y = model[2](nn.functional.embedding(index, W).flatten(1))
    y.square().sum().backward()
    G = W.grad
    optimizer = rw.Optimizer(
        model, lr=0.01, rule=SGD(), max_step=1e9, integrator=rw.integrators.AugmentedBUG(),
        rank_rule=rw.Tolerance(rtol=0.0, every=2, grow=9),
    )  # fmt: skip
    model(index).square().sum().backward()
    U, _, V = model[0].factors()
    U_hat = torch.linalg.qr(torch.cat([U, G @ V], 1)).Q
    V_hat = torch.linalg.qr(torch.cat([V, G.mT @ U], 1)).Q
    expected = W.detach() - 0.01 * U_hat @ U_hat.mT @ G @ V_hat @ V_hat.mT
    optimizer.step()
    close(model[0].factors().dense(), expected, 1e-10)


def test_mistakes_are_told_at_once():
    model = nn.Sequential(nn.Linear(20, 20), nn.ReLU())
    with pytest.raises(ValueError, match=r"no matrix named 'O'"):
        rw.factorize_(model, rank={"O": 3})
    with pytest.raises(TypeError, match=r"`rank` must be an int, got 0\.5"):
        rw.factorize_(model, rank=0.5)
    with pytest.raises(ValueError, match="at least 1"):
        rw.factorize_(model, rank=0)
    with pytest.raises(TypeError, match=r"Random\(\)"):
        rw.factorize_(model, init=Random)
    with pytest.raises(ValueError, match="no layer is left"):
        rw.factorize_(model, rank=10)
    with pytest.raises(ValueError, match="torch.nn.Sequential"):
        rw.factorize_(nn.Linear(20, 20), rank=2)
    with pytest.raises(ValueError, match="bfloat16: call"):
        rw.factorize_(nn.Sequential(nn.Linear(20, 20)).bfloat16(), rank=2)
    with pytest.raises(ValueError, match="no low-rank layer"):
        rw.shrink(model)
    rw.factorize_(model, rank=2)
    with pytest.raises(ValueError, match="already low rank"):
        rw.factorize_(model, rank=2)
    torch.nn.init.zeros_(model[0].S)
    zero = nn.Sequential(nn.Linear(20, 20))
    nn.init.zeros_(zero[0].weight)
    with pytest.raises(ValueError, match="is zero"):
        rw.factorize_(zero, rank=2, init=Random())
    assert type(zero[0]) is nn.Linear
    adapted = nn.Sequential(nn.Linear(4, 4))
    rw.adapt_(adapted, rank=2)
    for undo in (rw.shrink, rw.densify_):
        with pytest.raises(ValueError, match="merge_"):
            undo(adapted)


def test_whole_models_are_saved_and_loaded_with_their_ranks(tmp_path, draw):
    model, index = everything(), indices(draw)
    rw.factorize_(model, rank=3)
    y = model(index)
    rw.save(model, tmp_path)
    other = everything()
    rw.factorize_(other, rank=1, init=Random())
    rw.load(other, tmp_path)
    close(other(index), y)


@pytest.mark.parametrize("init", [TruncatedSVD(), Random()])
def test_frozen_weights_become_frozen_factors_in_the_mode_they_were_in(init):
    model = nn.Sequential(nn.Linear(20, 20)).eval().requires_grad_(False)
    rw.factorize_(model, rank=2, init=init)
    assert not any(p.requires_grad for p in model.parameters())
    assert not model[0].training


def convolutions() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(6, 10, 3, padding=1), nn.Tanh(), nn.Conv2d(10, 12, (1, 3), stride=2),
        nn.Flatten(), nn.Linear(12 * 4 * 3, 4),
    ).double()  # fmt: skip


def test_convolutions_in_tucker_form_are_the_hosvd_of_their_kernels(draw):
    model, x = convolutions(), torch.randn(2, 6, 7, 7, generator=draw, dtype=torch.float64)
    kernels = [model[0].weight.detach().clone(), model[2].weight.detach().clone()]
    plan = rw.factorize_(model, rank=4, exclude="4", convolution=TuckerConv2d)
    for W, layer in zip(kernels, (model[0], model[2]), strict=True):
        assert isinstance(layer, TuckerConv2d) and layer.ranks == (4, 4)
        tails = [torch.linalg.svdvals(M)[4:].square().sum() for M in modes(W)]
        error = torch.linalg.vector_norm(W - layer.kernel())
        assert max(tails).sqrt() * (1 - 1e-9) <= error <= sum(tails).sqrt()
    y = model(x)
    small = rw.shrink(model)
    close(small(x).detach(), y.detach())
    assert [type(part) for part in small[0]] == [nn.Conv2d] * 3
    assert sum(p.numel() for p in small.parameters()) == plan.kept
    rw.densify_(model)
    close(model(x).detach(), y.detach())


def modes(W: torch.Tensor) -> list[torch.Tensor]:
    return [W.flatten(1), W.transpose(0, 1).flatten(1)]


def test_tucker_plans_count_what_runs(draw):
    model, x = convolutions(), torch.randn(2, 6, 7, 7, generator=draw, dtype=torch.float64)
    plan = rw.plan_factorize(model, rank=4, convolution=TuckerConv2d, example=x)
    first, second, _ = (layer for layer in plan.layers if len(layer.shape) == 2)
    assert first.kept == 4 * 10 + 4 * 6 + 4 * 4 * 9
    assert first.products_kept == first.kept * 2 * 7 * 7
    # 4 x 3 places come out of the second; its first map meets four times as many.
    assert second.products_kept == 2 * 12 * (4 * 4 * 10 + 4 * 4 * 3 + 4 * 12)
    wide = rw.plan_factorize(model, rank=9, convolution=TuckerConv2d).layers[0]
    assert wide.rank == 0 and wide.reason.startswith("rank 9 would save nothing: at most ")
    with pytest.raises(ValueError, match="TuckerConv2d"):
        rw.plan_factorize(model, convolution=LowRankLinear)


def test_tucker_kernels_train_from_scratch_and_keep_the_norm_of_the_dense_start(draw):
    model = convolutions().float()
    norms = [model[i].weight.detach().norm() for i in (0, 2)]
    rw.factorize_(model, rank=4, init=Random(), exclude="4", convolution=TuckerConv2d)
    for norm, layer in zip(norms, (model[0], model[2]), strict=True):
        torch.testing.assert_close(layer.kernel().norm(), norm)
    x = torch.randn(16, 6, 7, 7, generator=draw)
    target = torch.arange(16) % 4
    rule = rw.Budget(parameters=300, every=10, keep=0.8)
    optimizer = rw.Optimizer(model, lr=0.05, max_step=0.05, rank_rule=rule)
    first = float(cross_entropy(model(x), target).detach())
    for _ in range(80):
        optimizer.zero_grad()
        loss = cross_entropy(model(x), target)
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.2 * first
    held = sum(model[i].thin_numel for i in (0, 2))
    assert held <= 300
