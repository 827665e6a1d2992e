"""A damaged record costs the lines that are damaged, keeps them aside, says which, and blocks no run."""

import json
import os
import re

import pytest

from dit_video.checkpoint.writer import SAVES_FILE, save_line
from dit_video.config.json_file import check_kinds
from dit_video.progress import Terminal
from dit_video.storage.json_lines import LinesFile, parse_lines, read_lines
from dit_video.storage.retrying_files import RetryingFiles
from dit_video.training import events, goodput
from dit_video.training.events import Event, read_events
from dit_video.training.goodput import Activity, read_goodput
from dit_video.training.tracker import METRICS_FILE, Tracker, metrics_line, read_record

LINES = [
    {"step": 1, "loss": 1.0, "gradient_norm": float("nan")},
    {"step": 2, "loss": 0.5, "gradient_norm": 3e-05},
    {"step": 2, "evaluation": "held-out error", "x_0_error": 0.5},
    {"step": 2, "rates": {"clips_per_second": 3.5, "data_wait_share": 0}},
    {"step": 3, "loss": 0.25, "gradient_norm": float("inf")},
]
CONTENT = b"".join(json.dumps(line).encode() + b"\n" for line in LINES)


def opened(path, read, messages):
    return LinesFile(RetryingFiles(messages.append).file(path), read)


def test_one_flipped_bit_costs_no_more_than_the_lines_that_it_is_in():
    """F5, with bits everywhere. Lines that are not of their kind are bad ones, not gone."""
    texts = CONTENT.split(b"\n")
    num_bad = 0
    for place in range(len(CONTENT)):
        hit = CONTENT[:place].count(b"\n")
        # Without its line break a line is one with the next; the last is then one that a kill has left, and whole.
        damaged = {hit, hit + 1} if CONTENT[place : place + 1] == b"\n" and hit + 1 < len(LINES) else {hit}
        for bit in (0, 4, 6):
            content = bytearray(CONTENT)
            content[place] ^= 1 << bit
            lines = parse_lines(bytes(content), metrics_line)
            *whole, last = bytes(content).split(b"\n")
            assert {text for number, text in enumerate(texts[:-1]) if number not in damaged} <= set(lines.texts)
            assert set(whole) - {b"", last} == {*lines.texts, *(bad.text for bad in lines.bad)} - {b"", last}
            num_bad += bool(lines.bad)
    assert num_bad > 400


def test_a_last_line_that_a_kill_cut_short_is_no_damage(tmp_path, messages):
    path = tmp_path / METRICS_FILE
    for cut in range(1, len(json.dumps(LINES[-1])) + 1):
        path.write_bytes(CONTENT[:-cut])
        lines = opened(path, metrics_line, messages)
        lines.append({"step": 4, "loss": 0.125})
        assert [line["step"] for line in lines.lines()] == [1, 2, 2, 2, *([3] if cut == 1 else []), 4]
        assert path.read_bytes().count(b"\n") == 5 + (cut == 1)
    assert messages == []
    assert list(tmp_path.iterdir()) == [path]


BAD = {
    b"garbage": "not JSON",
    b"": None,
    b"\0" * 512: "not JSON",  # of a block that a loss of power left
    b"\xff\xfe{}": "not JSON",
    b"[" * 100_000: "nested too deep",
    b"9" * 5000: "not JSON",
    b"[1]": "holds list, not an object",
    b'{"stap": 2, "loss": 1.0}': "has no step",
    b'{"step": 2.0, "loss": 1.0}': "step=2.0: must be a whole number",
    b'{"step": true, "loss": 1.0}': "step=True: must be a whole number",
    b'{"step": 1e999, "loss": 1.0}': "step=inf: must be a whole number",
    b'{"step": 2, "lors": 1.0}': "has no loss",
    b'{"step": 2, "loss": "1.0"}': "loss='1.0': must be a number",
    b'{"step": 2, "loss": null}': "loss=None: must be a number",
    b'{"step": 2, "evaluation": 5}': "evaluation=5: must be a text",
    b'{"step": 2, "evaluation": "fvd", "fvd": [1]}': r"fvd=\[1\]: must be a number",
    b'{"step": 2, "rates": 5}': "rates=5: must be an object",
    b'{"step": 2, "rates": {"clips": 5}}': "has no clips_per_second",
    b'{"step": 2, "rates": {"clips_per_second": {}}}': "clips_per_second={}: must be a number",
}


@pytest.mark.parametrize("text", BAD, ids=range(len(BAD)))
def test_a_bad_line_is_kept_aside_and_named_and_the_others_are_used(text, tmp_path, messages):
    path, aside = tmp_path / METRICS_FILE, tmp_path / f"{METRICS_FILE}.bad"
    first, *rest = CONTENT.splitlines(keepends=True)
    path.write_bytes(first + text + b"\n" + b"".join(rest))
    assert json.dumps(read_lines(path, metrics_line)) == json.dumps(LINES)
    opened(path, metrics_line, messages)
    assert path.read_bytes() == CONTENT
    if BAD[text] is None:
        assert (messages, aside.exists()) == ([], False)
        return
    assert aside.read_bytes() == text + b"\n"
    (message,) = messages
    before, _, why = message.partition(" (")
    assert before == f"{path}: damaged lines are kept in {METRICS_FILE}.bad: 2"
    assert re.fullmatch(rf"{BAD[text]}.*\); the other 5 are used", why, re.DOTALL)


def test_later_damage_is_added_to_what_is_kept_aside(tmp_path, messages):
    path = tmp_path / METRICS_FILE
    for text in (b"one\n", b"two\n" * 5):
        path.write_bytes(text + CONTENT)
        opened(path, metrics_line, messages)
    assert (tmp_path / f"{METRICS_FILE}.bad").read_bytes() == b"one\n" + b"two\n" * 5
    assert "and 2 more" in messages[1]


@pytest.mark.parametrize("kind", ["folder", "pipe", "dangling link", "folder beside its .bad"])
def test_what_is_no_file_is_kept_aside_and_a_file_written_in_its_place(kind, tmp_path, messages):
    """Who opens a pipe to read or write waits for ever; who writes through a link makes a file elsewhere."""
    path, target = tmp_path / METRICS_FILE, tmp_path / f"{METRICS_FILE}.bad"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "dangling link":
        path.symlink_to(tmp_path / "elsewhere")
    else:
        path.mkdir()
        (path / "precious").touch()
    if kind == "folder beside its .bad":
        target.mkdir()
        target = tmp_path / f"{METRICS_FILE}.2.bad"
    assert read_lines(path, metrics_line) == []
    opened(path, metrics_line, messages).append(*LINES)
    assert path.read_bytes() == CONTENT
    assert os.path.lexists(target)
    assert [f"is kept as {target.name}" in message for message in messages] == [True]
    assert not (tmp_path / "elsewhere").exists()


def test_a_run_with_every_record_damaged_goes_on_and_says_so(tmp_path, messages):
    """F5 and F13: lines in the middle of each file, of no JSON and of another kind."""
    console = Terminal(quiet=True)
    with RetryingFiles(messages.append) as files:
        tracker = Tracker(tmp_path, files, start=0, num_steps=6, console=console)
        tracker.steps((step, {"loss": 1 / step}) for step in range(1, 5))
        tracker.evaluation(4, "samples", {"fvd": 3.0})
        for step in (1, 3):
            what = ("high",)
            tracker.events.add(Event(step=step, batch=step, kind=events.Kind.SPIKE, done=events.Done.NOTED, what=what))
        tracker.close()
    (tmp_path / SAVES_FILE).write_text('{"step": 4, "bytes": 10}\n')
    bad = {
        METRICS_FILE: b'{"step": 5\n{"loss": 1.0}\n',
        events.FILE: b'{"step": 2, "batch": 2, "kind": "odd", "done": "noted", "what": []}\n{"step": "2"}\n',
        goodput.FILE: b'{"session": 1}\n{"session": 1, "step": 2, "seconds": {"sleep": 1e3}}\n',
        SAVES_FILE: b'{"step": 4, "bytes": "ten"}\n{"step": 4}\n',
    }
    good = {name: (tmp_path / name).read_bytes() for name in bad}
    for name, text in bad.items():
        (tmp_path / name).write_bytes(text + good[name])
    with RetryingFiles(messages.append) as files:
        again = Tracker(tmp_path, files, start=4, num_steps=6, console=console)
        saves = LinesFile(files.file(tmp_path / SAVES_FILE), save_line)
        again.steps((step, {"loss": 1 / step}) for step in (5, 6))
        again.close()
    assert again.has_evaluation(4, "samples")
    assert [line["step"] for line in read_record(tmp_path)] == [1, 2, 3, 4, 4, 5, 6]
    assert [event.step for event in read_events(tmp_path)] == [1, 3]
    assert sum(read_goodput(tmp_path).values()) < 60
    assert read_goodput(tmp_path)[Activity.INITIALISE] > 0
    assert saves.lines() == [{"step": 4, "bytes": 10}]
    assert {name: (tmp_path / f"{name}.bad").read_bytes() for name in bad} == bad
    assert sorted(message.partition(": ")[0] for message in messages) == sorted(str(tmp_path / name) for name in bad)


def test_fields_have_the_types_that_are_asked_for():
    kinds = {"a": int, "b": float, "c": (str, type(None)), "d": dict, "e": list, "f": bool}
    good = {"a": 1, "b": 2, "c": None, "d": {}, "e": [], "f": True, "more": object()}
    check_kinds(good, kinds)
    check_kinds(good | {"b": 2.5, "c": "x"}, kinds)
    for name, value in {"a": True, "b": "2", "c": 3, "d": [], "e": {}, "f": 1}.items():
        with pytest.raises(ValueError, match=f"{name}=.*: must be "):
            check_kinds(good | {name: value}, kinds)
        with pytest.raises(ValueError, match=f"has no {name}"):
            check_kinds({key: value for key, value in good.items() if key != name}, kinds)
