"""The page on scaling has the tables that its script computes, and numbers that follow."""

import sys

import pytest

from pages import DOCS, ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import scaling_clients  # noqa: E402
import scaling_gpus  # noqa: E402
from scaling import Options, main, tables  # noqa: E402
from transformer_shapes import transformer_shapes  # noqa: E402

PAGE = (DOCS / "scaling.md").read_text()
RANK, PROCESSES, SAMPLED, CLIENTS = 16, 8, 100, 10_000


@pytest.fixture(scope="module")
def shapes():
    return transformer_shapes()


@pytest.mark.parametrize("name", ["shapes", "gpus", "clients", "server"])
def test_the_tables_of_the_page_are_those_of_the_script(name, shapes):
    assert tables(shapes, Options())[name] in PAGE


def test_the_shapes_are_those_of_seven_billion_parameters(shapes):
    assert shapes.total == 6_738_415_616
    assert len(shapes.maps) == 7 * 32
    assert shapes.rest == 2 * 32_000 * 4096 + 65 * 4096


def test_what_the_page_says_of_gpus_follows(shapes):
    b = {m.name: scaling_gpus.in_bytes(m, shapes, RANK, PROCESSES) for m in scaling_gpus.METHODS}
    full, ours, sharded = b["full, DDP"], b["rankwise, DDP"], b["rankwise, FSDP2"]
    assert f"1/{full.sent / ours.sent:.0f} of what full fine-tuning sends" in PAGE
    assert f"{sharded.gathered / 1e9:.3g} GB for weights" in PAGE
    assert f"{(full.gradients + full.moments) / 1e9:.0f} GB of gradients and" in PAGE
    assert ours.moments < 0.54 * b["LoRA, DDP"].moments
    assert ours.held - b["LoRA, DDP"].held < 0


def test_what_the_page_says_of_clients_follows(shapes):
    adapters, whole = scaling_clients.ADAPTERS[3], scaling_clients.WHOLE
    base = CLIENTS * scaling_clients.BFLOAT16 * shapes.total
    rounds = base / (SAMPLED * scaling_clients.round_of(adapters, shapes, RANK, SAMPLED).both)
    assert f"{base / 1e12:.0f} TB" in PAGE
    assert f"{rounds:,.0f}"[:3] == "2,7" and "2,800 rounds" in PAGE
    plain, _, full, _ = (scaling_clients.round_of(m, shapes, 64, SAMPLED).both for m in whole)
    dense = scaling_clients.FLOAT32 * shapes.rest
    shares = [f"{100 * part:.0f} %" for part in (2 * dense / plain, 4 * dense / full)]
    assert "{} of all bytes, with a correction {}".format(*shares) in PAGE


@pytest.mark.parametrize("of, share", [(0, 0.27), (2, 0.22)])
def test_the_rank_from_which_nothing_is_saved(of, share):
    n = 4096
    _, of_matrix, *_ = scaling_clients.FEDLRT[of]

    def both(rank: int) -> int:
        round = of_matrix(n, n, rank)
        return round.down + round.up

    first = next(rank for rank in range(1, n) if both(rank) >= 2 * n * n)
    assert first / n == pytest.approx(share, abs=0.005)


def test_the_script_writes_tables_numbers_and_figure(tmp_path, capsys):
    main(Options(output=tmp_path, quick=True))
    assert {p.name for p in tmp_path.iterdir()} == {"scaling.md", "metrics.json", "scaling.png"}
    assert capsys.readouterr().out.strip() == (tmp_path / "scaling.md").read_text().strip()
