"""The page of runs: its numbers are those of the files, and nothing in a file can break it."""

import json
import math
from html.parser import HTMLParser
from pathlib import Path

import pytest

from rankwise.cli.main import main
from rankwise.report.page.write import embedded, write_report
from recorded_runs import HOSTILE, NAMES, history, write_run


class Read(HTMLParser):
    """Text by element, and the JSON in the page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.texts: list[tuple[str, str]] = []
        self.classes: list[str] = []
        self.embedded = ""
        self.scripts = 0
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.scripts += tag == "script"
        self.classes += (given.get("class") or "").split()
        self.stack.append("numbers" if given.get("id") == "numbers" else tag)

    def handle_endtag(self, tag):
        while self.stack and self.stack.pop() not in (tag, "numbers"):
            pass

    def handle_data(self, data):
        if self.stack and self.stack[-1] == "numbers":
            self.embedded += data
        elif self.stack and self.stack[-1] not in ("script", "style"):
            self.texts.append((self.stack[-1], data.strip()))

    @property
    def text(self) -> str:
        return " ".join(text for _, text in self.texts if text)

    @property
    def numbers(self) -> dict:
        return json.loads(self.embedded)


def page(tmp_path: Path, *folders: Path, **options) -> Read:
    target = tmp_path / "report.html"
    written = write_report(folders, target, **options)
    read = Read(target.read_text())
    assert read.numbers == json.loads(json.dumps(written.numbers))
    return read


def lines_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run", metrics={"accuracy": 0.8125, "eval_loss": 0.4375})


def test_the_numbers_are_those_of_the_files(run, tmp_path):
    read, lines = page(tmp_path, run), lines_of(run)
    charts = read.numbers["charts"]
    raw = next(c for c in charts["loss"]["curves"] if "each step" in c["name"])
    assert raw["xs"] == [line["step"] for line in lines]
    assert raw["ys"] == pytest.approx([line["loss"] for line in lines], rel=1e-5)
    for key, name in (("parameters", "parameters"), ("lr", "lr"), ("rank", "mean_rank")):
        (curve,) = charts[key]["curves"]
        assert curve["ys"] == pytest.approx([line[name] for line in lines], rel=1e-5)
    facts = read.numbers["runs"][0]["facts"]
    assert facts["train_loss"] == pytest.approx(sum(x["loss"] for x in lines[-30:]) / 30)
    assert facts["parameters_end"] == lines[-1]["parameters"]
    assert facts["peak_memory"] == max(x.get("peak_memory", 0) for x in lines)
    assert facts["steps"] == len(lines) and facts["skipped"] == 1
    for shown in ("81.25%", "0.4375", f"{lines[-1]['parameters']:,}"):
        assert shown in read.text


def test_the_heat_map_has_a_row_a_layer_with_the_ranks_of_the_history(run, tmp_path):
    read, lines = page(tmp_path, run), lines_of(run)
    (heat,) = read.numbers["heats"].values()
    assert [row["name"] for row in heat["rows"]] == NAMES
    now = None
    for line in lines:
        now = line.get("ranks", now)
        for row, rank in zip(heat["rows"], now, strict=True):
            place = max(i for i, step in enumerate(row["steps"]) if step <= line["step"])
            assert row["ranks"][place] == rank
    for row in heat["rows"]:
        assert row["name"] in read.text


def test_the_heat_map_tells_both_ranks_of_a_kernel(tmp_path):
    lines = history(steps=10, ranks=lambda step: [[12, 8] if step < 5 else [6, 4], 3])
    run = write_run(tmp_path / "run", lines=lines, names=["kernel", "map"])
    read = page(tmp_path, run)
    (heat,) = read.numbers["heats"].values()
    assert heat["rows"][0]["ranks"] == ["12 \u00d7 8", "6 \u00d7 4"]
    assert "12 \u00d7 8" in read.text and "6 \u00d7 4" in read.text


def test_spectra_are_those_of_the_last_line(run, tmp_path):
    (told,) = page(tmp_path, run).numbers["spectra"].values()
    last = [line for line in lines_of(run) if "spectra" in line][-1]
    assert told["steps"][-1] == last["step"]
    assert [row["sigma"] for row in told["rows"]] == last["spectra"]


def test_nothing_in_a_file_ends_a_script_or_becomes_markup(tmp_path):
    run = write_run(tmp_path / "<b>run", names=HOSTILE, metrics={"<i>mine</i>": 1.5})
    (run / "options.json").write_text(json.dumps({"<u>option": "</td><script>alert(1)</script>"}))
    target = tmp_path / "report.html"
    write_report([run], target, title="</title><script>alert(2)</script>")
    html = target.read_text()
    read = Read(html)
    assert read.scripts == html.count("<script") == 2
    assert html.count("</script") == 2
    assert [row["name"] for row in next(iter(read.numbers["heats"].values()))["rows"]] == HOSTILE
    for name in (*HOSTILE, "<u>option", "</td><script>alert(1)</script>", "<i>mine</i>"):
        assert name in read.text
    for element in ("<b>run", "<u>", "<i>mine"):
        assert element not in html


def test_embedded_json_holds_no_character_of_markup():
    value = {"a</script>": ["<!--", "&amp;", "\u2028"]}
    text = embedded(value)
    assert not set("<>&\u2028") & set(text)
    assert json.loads(text) == value
    with pytest.raises(ValueError, match="not JSON compliant"):
        embedded([math.nan])


def test_the_page_asks_for_nothing_outside(run, tmp_path):
    page(tmp_path, run)
    html = (tmp_path / "report.html").read_text()
    assert "default-src 'none'" in html
    for word in ("http://", "https://", "@import", "url(", "src=", '<link rel="stylesheet'):
        assert word not in html


def test_runs_are_compared_and_the_best_is_marked(tmp_path):
    one = write_run(tmp_path / "one", metrics={"accuracy": 0.9, "eval_loss": 0.5}, seed=1)
    two = write_run(tmp_path / "two", metrics={"accuracy": 0.8, "eval_loss": 0.4}, seed=2)
    for folder, keep in ((one, 0.1), (two, 0.2)):
        options = {"head_lr": 1.0, "keep": keep, "batch_size": 16, "output": str(folder)}
        (folder / "options.json").write_text(json.dumps(options))
    read = page(tmp_path, one, two)
    html = (tmp_path / "report.html").read_text()
    assert '<th scope="row">Accuracy</th><td class="best">90.00%</td><td>80.00%</td>' in html
    assert '<th scope="row">Loss, held out</th><td>0.5</td><td class="best">0.4</td>' in html
    difference = html[html.index("What differs") : html.index("Ranks: one")]
    assert "keep" in difference
    assert "batch size" not in difference and "output" not in html
    names = {curve["name"] for curve in read.numbers["charts"]["parameters"]["curves"]}
    assert names == {"one", "two"}
    assert len(read.numbers["heats"]) == 2


def test_runs_of_the_same_name_are_told_apart(tmp_path):
    folders = [write_run(tmp_path / part / "run") for part in ("a", "b")]
    read = page(tmp_path, *folders)
    assert [run["name"] for run in read.numbers["runs"]] == ["a/run", "b/run"]


def test_a_run_that_goes_on_or_was_stopped_says_so(tmp_path):
    run = write_run(tmp_path / "run", metrics=None)
    (run / "options.json").write_text(json.dumps({"head_lr": 1.0, "steps": 500}))
    with (run / "history.jsonl").open("a") as file:
        file.write('{"step": 61, "lo')
    read = page(tmp_path, run)
    assert "its record ends after step 60 of 500;" in read.text
    assert ("code", f"rankwise finetune --resume --output {run}") in read.texts
    assert "not complete" in read.text and not read.numbers["runs"][0]["complete"]


def test_a_history_of_an_earlier_version_has_the_charts_that_it_can(tmp_path):
    new = ("ranks", "spectra", "memory", "peak_memory", "skipped")
    lines = [{k: v for k, v in line.items() if k not in new} for line in history()]
    run = write_run(tmp_path / "run", lines=lines, about=None)
    read = page(tmp_path, run)
    assert {"loss", "parameters", "stationarity", "condition"} < set(read.numbers["charts"])
    assert "memory" not in read.numbers["charts"] and not read.numbers["heats"]
    assert "of an earlier version" in read.text and "Skipped steps" not in read.text


def test_a_run_on_several_processes_tells_what_it_sent(run, tmp_path):
    assert "bytes" not in page(tmp_path, run).numbers["charts"]
    lines = [line | {"bytes_per_step": 2784.0 + line["step"]} for line in history()]
    (curve,) = page(tmp_path, write_run(tmp_path / "two", lines=lines)).numbers["charts"]["bytes"][
        "curves"
    ]
    assert curve["ys"] == pytest.approx([line["bytes_per_step"] for line in lines])


def test_networks_of_one_run_are_beside_each_other_its_own_first(tmp_path):
    run = write_run(tmp_path / "run")
    lines = [{k: v for k, v in x.items() if k not in ("ranks", "spectra")} for x in history(seed=3)]
    write_run(run / "dense", lines=lines, metrics=None, names=[])
    curves = page(tmp_path, run).numbers["charts"]["parameters"]["curves"]
    assert [curve["name"] for curve in curves] == ["low rank", "dense"]


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda i, x: x | {"loss": 1.0 + i}, "The loss did not fall"),
        (lambda i, x: x | {"loss": None if i == 3 else x["loss"]}, "not finite in 1 step."),
        (lambda i, x: x | ({"ranks": [64, 64, 64]} if "ranks" in x else {}), "3 of 3 layers end"),
    ],
)
def test_a_reader_is_warned(tmp_path, change, said):
    lines = [change(i, line) for i, line in enumerate(history())]
    assert said in page(tmp_path, write_run(tmp_path / "run", lines=lines)).text


def test_a_limit_of_the_rank_rule_that_is_reached_is_told(tmp_path):
    lines = history(ranks=lambda step: [16, 16, 3])
    run = write_run(tmp_path / "run", lines=lines)
    about = json.loads((run / "run.json").read_text())
    about["optimizer"]["rank_rule"] = "Tolerance(max_rank=16, rtol=0.1)"
    (run / "run.json").write_text(json.dumps(about))
    assert "2 of 3 layers end at the limit max_rank=16" in page(tmp_path, run).text


def test_a_good_run_has_no_warning(tmp_path):
    lines = [{k: v for k, v in line.items() if k != "skipped"} for line in history()]
    read = page(tmp_path, write_run(tmp_path / "run", lines=lines))
    assert "Before you read on" not in read.text


def test_a_long_run_of_many_layers_is_a_page_of_bounded_size_that_keeps_extremes(tmp_path):
    names = [f"model.layers.{i // 10}.part.{i % 10}" for i in range(200)]

    def ranks(step: int) -> list[int]:
        return [1 + (step * (i + 1)) % 61 for i in range(200)]

    lines = history(steps=20_000, ranks=ranks, details=500)
    lines[7_777]["loss"], lines[12_345]["loss"] = 77.5, -3.25
    run = write_run(tmp_path / "run", lines=lines, names=names)
    read = page(tmp_path, run)
    assert (tmp_path / "report.html").stat().st_size < 2_000_000
    raw = next(c for c in read.numbers["charts"]["loss"]["curves"] if "each step" in c["name"])
    assert len(raw["xs"]) <= 600 and (raw["xs"][0], raw["xs"][-1]) == (1, 20_000)
    loss = dict(zip(raw["xs"], raw["ys"], strict=True))
    assert loss[7_778] == max(raw["ys"]) == 77.5
    assert loss[12_346] == min(raw["ys"]) == -3.25
    (heat,) = read.numbers["heats"].values()
    assert len(heat["rows"]) == 200
    final = [row["ranks"][-1] for row in heat["rows"]]
    assert final == lines[-1]["ranks"]


def test_a_folder_that_is_no_run_is_refused_and_nothing_is_written(tmp_path):
    with pytest.raises(ValueError, match="holds no run, .*`rankwise finetune --output .*` makes"):
        write_report([tmp_path], tmp_path / "report.html")
    run = write_run(tmp_path / "run")
    with pytest.raises(ValueError, match="is given twice"):
        write_report([run, run / "."], tmp_path / "report.html")
    (run / "metrics.json").write_text("{")
    with pytest.raises(ValueError, match=r"metrics\.json is damaged"):
        write_report([run], tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_the_command_writes_the_page_into_the_run_and_its_numbers_where_asked(
    run, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert main(["report", "run", "--json", "numbers.json", "--title", "A title"]) == 0
    assert "written: run/report.html" in capsys.readouterr().out
    read = Read((run / "report.html").read_text())
    assert read.numbers == json.loads(Path("numbers.json").read_text())
    assert ("h1", "A title") in read.texts
    write_run(tmp_path / "other")
    assert main(["report", "run", "other"]) == 0
    assert Path("report.html").is_file()
    assert main(["report"]) == 2
    assert "name a folder of a run" in capsys.readouterr().err
    assert main(["report", "nowhere"]) == 2
    assert "nowhere holds no run" in capsys.readouterr().err


def test_what_the_guard_has_met_is_told_before_a_run_is_believed(tmp_path):
    lines = history()
    lines[9]["incidents"] = {"repaired": 2, "bounded": 1}
    lines[19]["incidents"] = {"repaired": 2, "rewound": 1, "bounded": 3}
    text = page(tmp_path, write_run(tmp_path / "run", lines=lines)).text
    assert "back to an earlier state: 1 in all, first in step 20" in text
    assert "made orthonormal again: 2 in all, first in step 10" in text
