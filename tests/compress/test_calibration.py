"""Calibration: its metric is the loss, it changes nothing, and it beats a plain SVD."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import rankwise as rw
from cases import close
from rankwise.compress import calibrate, sampled_cross_entropy, sampled_square_error


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2), nn.ReLU(),
        nn.Flatten(), nn.Linear(72, 24), nn.ReLU(), nn.Linear(24, 4),
    ).double()  # fmt: skip


def images(draw, count: int = 64) -> torch.Tensor:
    return torch.randn(count, 3, 8, 8, generator=draw, dtype=torch.float64)


def fisher(model, x):
    return sampled_cross_entropy(model(x), torch.Generator().manual_seed(1))


def test_of_one_linear_layer_the_energies_are_the_loss_that_is_added(draw):
    """With a square error the second order is all there is, and the metric is exact."""
    model = nn.Sequential(nn.Linear(9, 6)).double()
    x = torch.randn(40000, 9, generator=draw, dtype=torch.float64) @ torch.diag(
        torch.logspace(0, -2, 9, dtype=torch.float64)
    )
    batches = list(x.split(10000))

    noise = torch.Generator().manual_seed(3)

    def loss(model, x):
        return sampled_square_error(model(x), noise)

    found = calibrate(model, batches, loss, damping=(1e-9, 1e-9), max_rows=10**6)
    before = model(x).detach()
    W = model[0].weight.detach().clone()
    unit = None
    for rank in (1, 2, 4):
        model[0].weight.data.copy_(found.layers["0"].cut(rank).dense())
        added = (model(x).detach() - before).square().sum(1).mean()
        predicted = found.energies("0")[rank:].sum()
        unit = predicted / added if unit is None else unit
        assert 0.96 < float(predicted / added / unit) < 1.04
    model[0].weight.data.copy_(W)


def test_it_changes_neither_model_nor_gradients(draw):
    model, x = network(), images(draw)
    model[0].weight.requires_grad_(False)
    model.train()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    calibrate(model, [x], fisher)
    assert model.training and model[2].training
    assert not model[0].weight.requires_grad and model[2].weight.requires_grad
    for name, p in model.named_parameters():
        assert p.grad is None
        close(p.detach(), before[name], 0.0)
    assert not any(m._forward_hooks for m in model.modules())


def trained(draw) -> tuple[nn.Sequential, torch.Tensor, torch.Tensor]:
    model, x = network().float(), images(draw, 512).float()
    x[:, :, ::2] *= 0.1
    y = (x[:, 0].mean((1, 2)) > 0).long() + 2 * (x[:, 1].mean((1, 2)) > 0).long()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(120):
        optimizer.zero_grad()
        cross_entropy(model(x), y).backward()
        optimizer.step()
    return model, x, y


def test_calibrated_ranks_lose_less_than_one_share_of_plain_svd_for_all_layers(draw):
    model, x, y = trained(draw)
    weights = sum(p.numel() for p in model.parameters() if p.ndim > 1)
    found = calibrate(model, x.split(128), fisher)
    ranks = found.ranks(0.4)
    own = {n: d.shape for n, d in found.layers.items()}
    held = sum(ranks[n] * sum(s) if n in ranks else s[0] * s[1] for n, s in own.items())
    assert held <= 0.4 * weights
    uniform = {n: max(1, int(0.4 * m * k / (m + k))) for n, (m, k) in own.items()}
    losses = []
    for options in ({"rank": ranks, "init": found}, {"rank": uniform}):
        twin = network().float()
        twin.load_state_dict(model.state_dict())
        rw.factorize_(twin, **options)
        losses.append(float(cross_entropy(twin(x), y).detach()))
    dense = float(cross_entropy(model(x), y).detach())
    assert losses[0] - dense < 0.5 * (losses[1] - dense)


def test_the_price_of_products_moves_ranks_to_where_images_are_small(draw):
    model, x, _ = trained(draw)
    found = calibrate(model, [x], fisher)
    assert found.places["0"] > found.places["2"] > found.places["5"] > 0
    by_weight, by_product = found.ranks(0.5), found.ranks(0.5, price=found.places)
    assert by_weight != by_product

    def products(ranks):
        total = 0
        for name, d in found.layers.items():
            m, n = d.shape
            total += found.places[name] * (ranks[name] * (m + n) if name in ranks else m * n)
        return total

    assert products(by_product) <= 0.5 * products({}) < products(by_weight)


def test_an_attention_is_calibrated_by_its_matrices(draw):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    model = nn.Sequential(layer, nn.Flatten(), nn.Linear(40, 3))
    x = torch.randn(64, 5, 8, generator=draw)
    y = model(x)
    found = calibrate(model, [x], fisher)
    assert {"0.self_attn.q_proj", "0.self_attn.out_proj", "0.linear1", "2"} <= set(found.layers)
    assert isinstance(model[0].self_attn, nn.MultiheadAttention)
    rw.factorize_(model, rank={"0.self_attn.v_proj": 3, "0.linear1": 3}, init=found)
    assert model(x).shape == y.shape


def test_layers_that_no_batch_reaches_are_left_out(draw):
    class Unused(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.Linear(6, 4), nn.Linear(6, 4)

        def forward(self, x):
            return self.used(x)

    found = calibrate(Unused(), [torch.randn(20, 6, generator=draw)], fisher)
    assert set(found.layers) == {"used"}


def test_padding_without_a_gradient_does_not_count(draw):
    model = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 4))
    x = torch.randn(30, 6, generator=draw)
    padded = torch.cat([x, 1e3 * torch.randn(30, 6, generator=draw)])

    def loss(model, x):
        return fisher(lambda rows: model(rows)[:30], x)

    a, b = calibrate(model, [x], loss), calibrate(model, [padded], loss)
    for name in a.layers:
        torch.testing.assert_close(a.layers[name].sigma, b.layers[name].sigma)


def test_mistakes_are_told(draw):
    model, x = network(), images(draw)
    with pytest.raises(ValueError, match="holds no batch"):
        calibrate(model, [], fisher)
    with pytest.raises(ValueError, match="not finite"):
        calibrate(model, [x * float("nan")], lambda m, x: m(x).sum())
    with pytest.raises(ValueError, match="two positive"):
        calibrate(model, [x], fisher, damping=(0.1, 0.0))
    found = calibrate(model, [x], fisher, select="5")
    with pytest.raises(ValueError, match=r"a share in \(0, 1\], got 1.5"):
        found.ranks(1.5)
    with pytest.raises(ValueError, match="'7' was not calibrated"):
        rw.factorize_(model, rank={"7": 1}, init=found)
    assert type(model[5]) is nn.Linear


def test_what_a_model_writes_into_its_activations_is_not_lost(draw):
    torch.manual_seed(0)

    def build(inplace: bool) -> nn.Sequential:
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 6, 3), nn.ReLU(inplace), nn.Conv2d(6, 6, 3), nn.ReLU(inplace),
            nn.Flatten(), nn.Linear(96, 4),
        ).double()  # fmt: skip

    x = images(draw)
    a, b = calibrate(build(False), [x], fisher), calibrate(build(True), [x.clone()], fisher)
    for name in a.layers:
        close(a.layers[name].sigma, b.layers[name].sigma, 1e-10)


def test_an_input_by_name_is_seen_and_one_written_into_afterwards_is_seen_as_it_was(draw):
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 4)

        def forward(self, x):
            x = x * 1.0
            y = self.first(input=x)
            x += 100.0
            return self.second(y.tanh())

    x = torch.randn(50, 6, generator=draw)
    found = calibrate(Named(), [x], fisher)
    plain = Named()
    same = nn.Sequential(plain.first, nn.Tanh(), plain.second)
    other = calibrate(same, [x], fisher)
    torch.testing.assert_close(found.layers["first"].sigma, other.layers["0"].sigma)


def test_products_count_all_places_and_not_only_those_that_matter(draw):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    model = nn.Sequential(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False))
    head = nn.Linear(8, 3)
    x = torch.randn(4, 10, 8, generator=draw)
    found = calibrate(model, [x], lambda m, x: sampled_cross_entropy(head(m(x)[:, 0])))
    assert set(found.places.values()) == {40}


def test_a_calibration_is_of_the_weights_that_it_saw(draw):
    model, x = network(), images(draw)
    found = calibrate(model, [x], fisher)
    with pytest.raises(ValueError, match="cuts kernels as matrices"):
        rw.factorize_(model, rank={"2": 2}, init=found, convolution=rw.nn.TuckerConv2d)
    model[5].weight.data.mul_(-1)
    with pytest.raises(ValueError, match="not the one that was calibrated"):
        rw.factorize_(model, rank={"5": 2}, init=found)
    with pytest.raises(ValueError, match="one direction in each layer is"):
        found.ranks(1e-3)


def test_few_of_many_places_give_nearly_the_same_ranks(draw):
    model, x = network(), images(draw, 256)
    whole, some = calibrate(model, [x], fisher), calibrate(model, [x], fisher, max_rows=200)
    for name in whole.layers:
        a, b = (found.energies(name).sum() for found in (whole, some))
        assert 0.7 < float(a / b) < 1.4


def test_the_least_share_is_one_direction_in_each_layer(draw):
    model, x = network(), images(draw)
    found = calibrate(model, [x], fisher)
    least = found.least_share()
    assert set(found.ranks(least * (1 + 1e-9)).values()) == {1}
    shapes = [layer.shape for layer in found.layers.values()]
    assert least == pytest.approx(sum(map(sum, shapes)) / sum(m * n for m, n in shapes))
    with pytest.raises(ValueError, match="too little"):
        found.ranks(0.99 * least)


def test_an_image_without_a_batch_is_one_item(draw):
    model, x = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(0), nn.Linear(288, 4)), images(draw)
    one = x[0].float()
    a = calibrate(model, [one], lambda m, x: fisher(lambda t: m(t)[None], x), max_rows=1)
    assert a.places["0"] == 36
