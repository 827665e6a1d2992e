"""A report: what may share an axis, what is kept of long records, and that no name becomes markup."""

import base64
import dataclasses
import hashlib
import html.parser
import json
import re

import numpy as np
import pytest
from made_runs import EXPERIMENT, write_fvd, write_lines, write_run, write_sample
from toys import SMALL_DENOISE

from dit_video.cli.main import main
from dit_video.config.user_file import ExperimentError
from dit_video.diffusion.objective import ddpm
from dit_video.nn.module import define
from dit_video.report.card_panels import panels
from dit_video.report.curves import charts, clock, level_charts, milestones, thinned
from dit_video.report.media_choice import choose, spread
from dit_video.report.page import render, short
from dit_video.report.recorded_run import read_runs
from dit_video.report.size import against_plan, sizes

HOSTILE = "'\"><script>alert(1)<script></script><img src=x onerror=alert(2)>"


class Elements(html.parser.HTMLParser):
    """Start tags of a page with their attributes, and the text of its scripts by id or number."""

    def __init__(self, page: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        if self.tags and self.tags[-1][0] == "script" and data.strip():
            self.scripts.append((self.tags[-1][1], data))


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Runs of one experiment that differ in a learning rate."""
    folder = tmp_path_factory.mktemp("two")
    other = dataclasses.replace(EXPERIMENT, optimizer=dataclasses.replace(EXPERIMENT.optimizer, learning_rate=0.5))
    return [write_run(folder / "a"), write_run(folder / "b", experiment=other, seed=1)]


@pytest.fixture(scope="module")
def page(two):
    return render(read_runs(two))


def with_objective(objective):
    return dataclasses.replace(EXPERIMENT, task=dataclasses.replace(SMALL_DENOISE, objective=objective))


def test_curves_of_one_protocol_share_an_axis(two):
    drawn = {(chart.kind, chart.metric): chart for chart in charts(read_runs(two))}
    assert [curve.run for curve in drawn["training", "loss"].curves] == [0, 1]
    assert [curve.run for curve in drawn["held out", "x_0_error"].curves] == [0, 1]
    assert {kind for kind, _ in drawn} == {"training", "held out", "speed"}
    assert ("speed", "wall_time") not in drawn, "the time of day is no measurement"


def test_the_clock_of_a_run_is_that_of_its_record_in_hours(two):
    run, _ = read_runs(two)
    line = {"step": 40, "rates": {"clips_per_second": 1.0}}
    times = [{"step": s, "rates": {"wall_time": 1.8e9 + 36.0 * s}} for s in range(10, 4000)]
    steps, hours = clock(dataclasses.replace(run, metrics=[line, *times[::-1]]))
    assert (steps[0], steps[-1], hours[0], hours[-1]) == (10, 3999, 0.0, 39.89)
    assert len(steps) < 400
    np.testing.assert_allclose(np.diff(hours) / np.diff(steps), 0.01, atol=1e-5)
    assert clock(dataclasses.replace(run, metrics=[line])) == ([], [])


def test_a_loss_of_another_objective_has_an_axis_of_its_own(two, tmp_path):
    other = write_run(tmp_path / "ddpm", experiment=with_objective(ddpm()))
    drawn = charts(read_runs([*two, other]))
    losses = [chart for chart in drawn if chart.metric == "loss"]
    assert [[curve.run for curve in chart.curves] for chart in losses] == [[0, 1], [2]]
    assert any(name.startswith("task.objective") for name in losses[1].apart)
    assert [len(chart.runs) for chart in level_charts(read_runs([*two, other]))] == [2, 1]
    [speed] = [chart for chart in drawn if chart.metric == "clips_per_second"]
    assert len(speed.curves) == 3, "clips a second are clips a second"


def test_cards_of_unlike_protocols_have_panels_of_their_own(tmp_path):
    folder = write_run(tmp_path / "run")
    write_fvd(folder / "evaluation" / "more.json", step=60, num_clips=2048)
    few, many = panels(read_runs([folder]))
    assert (few.apart, many.apart) == ([], ["num_clips"])
    values = [row.value for row in few.rows]
    assert values == sorted(values)
    assert few.verdicts == ["run step 60: 31% of the way from real clips (150) to held first frames (500)"]
    assert few.top >= max(row.interval[1] for row in few.rows)


@pytest.mark.parametrize("count", [10, 5000])
def test_a_thinned_curve_keeps_its_extremes_and_what_is_not_finite(count):
    values = np.random.default_rng(0).normal(size=count)
    values[count // 3], values[count // 2], values[-2] = 50, -50, np.nan
    kept = thinned(list(enumerate(values.tolist())), 100)
    assert len(kept) <= max(110, min(count, 100))
    assert kept == sorted(kept, key=lambda point: point[0])
    assert np.nanmax([v for _, v in kept]) == 50
    assert np.nanmin([v for _, v in kept]) == -50
    assert any(np.isnan(v) for _, v in kept)


@pytest.mark.parametrize("count", [0, 1, 2, 7, 20])
def test_steps_are_taken_spread_out_from_the_last_on(count):
    order = spread(count)
    assert sorted(order) == list(range(count))
    assert order[:2] == ([count - 1, 0] if count > 1 else order[:2])


def test_pictures_keep_within_their_budget_and_every_run_keeps_its_last(two):
    runs = read_runs(two)
    size = max(medium.path.stat().st_size for run in runs for medium in run.media)
    [shown] = choose(runs, budget=2 * size)
    assert {run: list(media) for run, media in shown.by_run.items()} == {0: [60], 1: [60]}
    assert shown.left_out == 4
    [everything] = choose(runs)
    assert everything.steps == [20, 40, 60]


def test_the_page_asks_nobody_and_runs_no_script_but_its_own(page):
    elements = Elements(page)
    for _, attributes in elements.tags:
        for name in ("src", "href", "poster", "action"):
            assert re.match(r"(#|data:|$)", attributes.get(name) or ""), attributes
    [policy] = [a["content"] for tag, a in elements.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    programs = [text for attributes, text in elements.scripts if "type" not in attributes]
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in programs]
    assert re.findall(r"'sha256-(.+?)'", policy) == hashes


def test_no_name_becomes_markup(tmp_path, page):
    folder = write_run(tmp_path / HOSTILE.replace("/", "∕"))
    write_lines(folder / "events.jsonl", [{"step": 1, "batch": 1, "kind": "spike", "done": "noted", "what": [HOSTILE]}])
    write_lines(folder / "samples" / "step_0000060_said.jsonl", [{"text": f"</script>{HOSTILE}"}])
    write_fvd(folder / "evaluation" / "more.json", step=60, notes=[HOSTILE], value=200.0)
    record = json.loads((folder / "experiment.json").read_text())
    record["overrides"], record["environment"] = [HOSTILE], {HOSTILE: HOSTILE, "devices": HOSTILE}
    record["experiment"]["evaluators"] = {HOSTILE: {"class": HOSTILE}}
    (folder / "experiment.json").write_text(json.dumps(record))
    elements = Elements(render(read_runs([folder]), title=HOSTILE))
    assert {tag for tag, _ in elements.tags} <= {tag for tag, _ in Elements(page).tags}
    assert not [a for _, attributes in elements.tags for a in attributes if a.startswith("on")]
    [data] = [json.loads(text) for attributes, text in elements.scripts if attributes.get("id") == "data"]
    assert data["runs"][0]["name"] == folder.name


def test_every_curve_is_a_table_too(two, page):
    without_scripts = re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    for chart in charts(read_runs(two)):
        for curve in chart.curves:
            first, *_, last = milestones(curve)
            assert f'<td class="n">{short(first)}</td>' in without_scripts
            assert f'<td class="n">{short(last)}</td>' in without_scripts


def test_fields_in_which_runs_differ_are_told_with_both_values(page):
    assert re.search(r"optimizer.learning_rate</code></th><td><code>0.0001</code></td><td><code>0.5</code>", page)


def test_the_size_is_that_of_the_network(two):
    one, other = sizes(read_runs(two))
    assert one == other
    assert one.num_params == define(SMALL_DENOISE.init).num_params
    assert one.flops > 0


def test_a_plan_is_set_against_what_was_measured(tmp_path):
    folder = write_run(tmp_path / "run")
    plan = {"clips": 16, "flops": 1e9, "memory": {"peak": 2**30}, "best_case": {"step_seconds": 1.0, "mfu": 0.5}}
    (folder / "plan.json").write_text(json.dumps(plan))
    rows = {row.name: row for row in against_plan(read_runs([folder])[0])}
    assert rows["time of a step"].ratio == pytest.approx(16 / 10.5, rel=0.1)
    assert rows["peak memory of a device"].measured is None
    assert "Plan against measured" in render(read_runs([folder]))


def test_names_of_runs_are_as_short_as_tells_them_apart(tmp_path):
    folders = [write_run(tmp_path / name, num_steps=3) for name in ("x/dit", "y/dit", "y/vae")]
    assert [run.name for run in read_runs([*folders, folders[0]])] == ["x/dit", "y/dit", "y/vae", "x/dit (2)"]


def test_a_damaged_card_is_noted_and_harms_nothing(tmp_path):
    folder = write_run(tmp_path / "run", num_steps=3)
    (folder / "evaluation" / "broken.json").write_text("{")
    write_sample(folder, 3, 0, name="nearest")
    text = render(read_runs([folder]))
    assert "broken.json" in text
    assert "samples that lie nearest to training clips" in text


def test_the_command_writes_one_file(two, tmp_path, capsys):
    out = tmp_path / "made" / "page.html"
    assert main(["report", *map(str, two), f"--out={out}", "--title=Two rates"]) == 0
    assert "<h1>Two rates</h1>" in out.read_text()
    assert "report of 2 runs" in capsys.readouterr().out


def test_a_folder_that_is_no_run_is_named(tmp_path):
    with pytest.raises(ExperimentError, match="not a run folder"):
        read_runs([tmp_path])


@pytest.mark.parametrize(
    ("value", "text"), [(0.12345, "0.1235"), (12.0, "12"), (9999.0, "9999"), (706200, "706.2 k"), (2.8e6, "2.8 M")]
)
def test_numbers_are_short(value, text):
    assert short(value) == text
