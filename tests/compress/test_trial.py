"""Trying compressions out and healing them: what is undone, what is found, what teachers say."""

import pytest
import torch
from torch import nn

import rankwise as rw
from cases import close
from rankwise.compress import cut_weights, distillation_loss, least_keep
from rankwise.init import TruncatedSVD


def network() -> nn.Module:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.3, batch_first=True)
    model = nn.Sequential(nn.Conv1d(3, 8, 3), nn.Flatten(1), nn.Unflatten(1, (8, 8)), layer)
    model[0].weight.data = model[0].weight.data.contiguous()
    return model.double()


def test_within_the_model_is_what_factorize_makes_of_it_and_after_it_is_as_before(draw):
    model = network()
    x = torch.randn(2, 3, 10, generator=draw, dtype=torch.float64)
    ranks = {"0": 2, "3.self_attn.k_proj": 2, "3.linear2": 3}
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with cut_weights(model, ranks, TruncatedSVD()):
        assert not model.training
        y = model(x).detach()
    assert model.training
    for name, p in model.named_parameters():
        close(p.detach(), before[name], 0.0)
    rw.factorize_(model, rank=ranks)
    close(model.eval()(x).detach(), y)


def test_weights_come_back_after_an_error_and_in_any_memory_format():
    model = nn.Sequential(nn.Conv2d(4, 6, 3)).to(memory_format=torch.channels_last)
    before = model[0].weight.detach().clone()
    with pytest.raises(KeyboardInterrupt), cut_weights(model, {"0": 2}, TruncatedSVD()):
        sigma = torch.linalg.svdvals(model[0].weight.detach().flatten(1))
        assert int((sigma > 1e-5 * sigma[0]).sum()) == 2
        raise KeyboardInterrupt
    close(model[0].weight.detach(), before, 0.0)


@pytest.mark.parametrize("wall", [0.03, 0.31, 0.77, 2.0])
def test_bisection_finds_the_smallest_share_that_will_do(wall):
    asked = []

    def loss(keep):
        asked.append(keep)
        return 1.0 if keep >= wall else 2.0

    found = least_keep(loss, most=1.5, resolution=0.01)
    assert min(wall, 1.0) <= found <= min(wall, 1.0) + 0.01
    assert len(asked) <= 7


def test_a_student_that_says_the_same_has_no_loss_and_no_gradient(draw):
    teacher = torch.randn(5, 3, 7, generator=draw)
    student = (teacher + 2.5).requires_grad_()
    loss = distillation_loss(student, teacher, temperature=3.0)
    loss.backward()
    assert float(loss.detach()) < 1e-6
    assert float(student.grad.abs().max()) < 1e-6


def test_distillation_is_the_mean_divergence_and_its_gradient_keeps_its_size(draw):
    teacher, student = torch.randn(2, 40, 7, generator=draw, dtype=torch.float64) * 1e-3
    p, q = teacher.softmax(-1), student.softmax(-1)
    expected = (p * (p.log() - q.log())).sum(-1).mean()
    close(distillation_loss(student.double(), teacher).double(), expected, 1e-7)
    sizes = []
    for temperature in (1.0, 4.0):
        s = student.clone().requires_grad_()
        distillation_loss(s, teacher, temperature=temperature).backward()
        sizes.append(float(s.grad.norm()))
    assert 0.99 < sizes[0] / sizes[1] < 1.01
    with pytest.raises(ValueError, match="must be positive"):
        distillation_loss(student, teacher, temperature=0.0)


def test_a_trial_of_what_factorize_would_refuse_is_refused():
    model = nn.Sequential(nn.Linear(8, 6), nn.Conv2d(4, 4, 3, groups=2))
    for ranks, message in (
        ({"O": 2}, "no matrix named 'O'"),
        ({"0": 7}, "of a matrix of"),
        ({"1": 1}, "cannot be low rank: of 2 groups"),
    ):
        with pytest.raises(ValueError, match=message), cut_weights(model, ranks, TruncatedSVD()):
            pass
