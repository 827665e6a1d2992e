"""Text sets: every byte comes back, whatever the files are; rows and their documents; the loader as for video."""

import gzip
import json

import numpy as np
import pyarrow
import pytest
import tokenizers

from dit_video.cli.main import main
from dit_video.data.dataset import Data
from dit_video.data.loader import BatchOrder, train_batches
from dit_video.data.record import Split
from dit_video.data.sources import TextSet
from dit_video.data.text_set import TextRows, read_text_manifest
from dit_video.data.text_tokens import OPEN, TextPrompt, prompt_pattern
from dit_video.data.tokenizers import BytePairs, Bytes, Characters, file_size, train_byte_pairs
from dit_video.ingest import text_files
from dit_video.ingest.text import ingest_text

DOCUMENTS = [f"Document {number}: {'lorem ipsum ' * (number % 5)}é." for number in range(40)]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Files of every kind, good and bad."""
    folder = tmp_path_factory.mktemp("corpus")
    for number, text in enumerate(DOCUMENTS[:10]):
        (folder / f"{number}.txt").write_text(text)
    lines = "".join(json.dumps({"body": text}) + "\n" for text in DOCUMENTS[10:20])
    (folder / "lines.jsonl").write_text(lines + 'no json\n{"body": 3}\n[]\n{"body": ""}\n')
    packed = "".join(json.dumps({"body": text}) + "\n" for text in DOCUMENTS[20:30])
    with gzip.open(folder / "packed.jsonl.gz", "wt") as file:
        file.write(packed)
    with pyarrow.CompressedOutputStream(pyarrow.OSFile(str(folder / "packed.jsonl.zst"), "wb"), "zstd") as stream:
        stream.write("".join(json.dumps({"body": text}) + "\n" for text in DOCUMENTS[30:]).encode())
    (folder / "empty.txt").write_bytes(b"")
    (folder / "bad.txt").write_bytes(b"caf\xe9 au lait")
    (folder / "torn.txt.gz").write_bytes(gzip.compress(b"x" * 9999)[:20])
    (folder / "picture.png").write_bytes(b"\x89PNG")
    return folder


@pytest.fixture(scope="module")
def made(corpus, tmp_path_factory):
    out = tmp_path_factory.mktemp("sets") / "set"
    words = ["data", "text", str(corpus), f"--out={out}", "--field=body", "--held_out_fraction=0.3"]
    assert main(words) == 0
    return out


def documents(directory, split: Split, length: int, align: int) -> list[str]:
    """The documents of a split, put together from its rows."""
    rows = TextRows(directory, read_text_manifest(directory), split, length=length, align=align)
    found, last = [], None
    for record in rows:
        for document in range(1, record.tokens.documents.max() + 1):
            where = record.tokens.documents == document
            spelled = bytes(record.tokens.tokens[where].astype(np.uint8))
            begins = where.argmax()
            goes_on = begins == 0 and last is not None
            found = [*found[:-1], found[-1] + spelled] if goes_on else [*found, spelled]
            last = document
        last = None if (record.tokens.documents[-1] == 0) else last
    return [text.decode(errors="replace") for text in found]


def test_every_file_is_accounted_for(made):
    entries = {entry.file: entry for entry in read_text_manifest(made).entries}
    assert len(entries) == 17
    assert entries["empty.txt"].reason == "is empty"
    assert "1 documents with bytes that are no UTF-8" in entries["bad.txt"].notes
    assert "ended it early" in entries["torn.txt.gz"].reason
    assert "is none of .txt, .jsonl" in entries["picture.png"].reason
    noted = entries["lines.jsonl"].notes
    assert "1 lines that are no JSON" in noted
    assert "2 lines without a text 'body'" in noted
    assert "1 empty documents" in noted
    assert sum(entries["lines.jsonl"].documents.values()) == 10


def test_rows_aligned_to_blocks_hold_every_document_once(made):
    manifest = read_text_manifest(made)
    assert sum(manifest.num_documents.values()) == 41
    together = []
    for split in Split:
        rows = TextRows(made, manifest, split, length=64, align=8)
        for record in rows:
            starts = np.flatnonzero(np.diff(record.tokens.documents, prepend=0) > 0)
            assert (starts % 8 == 0).all(), "a document begins with a block"
        tokens = np.concatenate([record.tokens.tokens[record.tokens.documents > 0] for record in rows])
        assert len(tokens) == manifest.num_tokens[split.value]
        together.append(bytes(tokens.astype(np.uint8)).decode())
    for text in [*DOCUMENTS, "caf\ufffd au lait"]:
        assert any(text in part for part in together)


def test_a_document_of_its_own_row_begins_and_ends_there(made):
    assert set(documents(made, Split.TRAIN, 256, 256)) <= {*DOCUMENTS, "caf\ufffd au lait"}


def test_batches_do_not_depend_on_who_makes_them_and_go_on_anywhere(made):
    data = Data.of_text(TextSet(directory=str(made), length=32, align=4), batch_size=4)
    whole, later = data.train(seed=1, start=0), data.train(seed=1, start=2)
    rows = [next(whole).signals["tokens"] for _ in range(3)]
    np.testing.assert_array_equal(next(later).signals["tokens"].tokens, rows[2].tokens)
    half = train_batches(
        data.source.open(Split.TRAIN),
        data.clips,
        BatchOrder(batch_size=4, seed=1, rows=[1, 3]),
        signals=data.signals,
        num_threads=2,
    )
    np.testing.assert_array_equal(next(half).signals["tokens"].tokens, rows[0].tokens[[1, 3]])
    for made_by in (whole, later, half):
        made_by.close()
    assert data.identity()["source"]["num_records"]["train"] > 0


def test_equal_text_gives_an_equal_set_and_a_spoilt_one_is_refused(corpus, tmp_path):
    for name in ("a", "b"):
        ingest_text([str(corpus)], tmp_path / name, field="body", tokenizer="chars")
    first, second = (read_text_manifest(tmp_path / name) for name in ("a", "b"))
    assert first == second
    assert isinstance(first.tokenizer, Characters)
    with pytest.raises(ValueError, match=r"TextSet\.tokenizer=Bytes"):
        TextSet(directory=str(tmp_path / "a")).open(Split.TRAIN)
    data = (tmp_path / "a" / "tokens-train").read_bytes()
    (tmp_path / "a" / "tokens-train").write_bytes(data[:-1])
    with pytest.raises(ValueError, match="the manifest says"):
        TextSet(directory=str(tmp_path / "a"), tokenizer=first.tokenizer).open(Split.TRAIN)


def test_of_a_single_document_the_end_is_held_out(tmp_path):
    (tmp_path / "book.txt").write_text("abcdefghij")
    manifest = ingest_text([str(tmp_path / "book.txt")], tmp_path / "set", held_out_fraction=0.2)
    assert manifest.num_tokens == {"train": 8, "held_out": 2}


def test_of_two_documents_each_is_on_a_side(tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt").write_text(name)
    manifest = ingest_text([str(tmp_path)], tmp_path / "set")
    assert manifest.num_documents == {"train": 1, "held_out": 1}


def test_files_named_after_both_sides_are_the_split(tmp_path):
    for name, text in (("train", "learnt"), ("test", "judged"), ("more", "learnt too")):
        (tmp_path / f"{name}.txt").write_text(text)
    manifest = ingest_text([str(tmp_path)], tmp_path / "set")
    assert manifest.num_bytes == {"train": len("learntlearnt too"), "held_out": len("judged")}


def test_a_line_without_end_is_left_out_and_named(tmp_path, monkeypatch):
    monkeypatch.setattr(text_files, "MOST_LINE_BYTES", 64)
    long = json.dumps({"text": "x" * 500})
    (tmp_path / "a.jsonl").write_text(f'{{"text": "short"}}\n{long}\n{{"text": "also"}}\n')
    manifest = ingest_text([str(tmp_path / "a.jsonl")], tmp_path / "set", held_out_fraction=0.0)
    assert manifest.num_documents == {"train": 2}
    assert "1 lines longer than" in manifest.entries[0].notes


def test_byte_pairs_give_back_any_text_and_count_its_bytes(tmp_path):
    (tmp_path / "a.txt").write_text("the cat sat on the mat, the café\n" * 20)
    manifest = ingest_text([str(tmp_path / "a.txt")], tmp_path / "set", tokenizer="bpe:280")
    text = "the cat \u2713 naïve"
    tokens = manifest.tokenizer.encode(text)
    assert manifest.tokenizer.decode(tokens) == text
    assert manifest.tokenizer.num_bytes()[tokens].sum() == len(text.encode())
    assert len(tokens) < len(text)
    assert read_text_manifest(tmp_path / "set").tokenizer == manifest.tokenizer
    again = ingest_text([str(tmp_path / "a.txt")], tmp_path / "b", tokenizer=str(tmp_path / "set/tokenizer.json"))
    assert again.num_tokens == manifest.num_tokens


@pytest.mark.parametrize(
    ("pattern", "spelled"),
    [
        ("a[3]b", "a???b"),
        ("[2].", "??."),
        ("[[x]", "[x]"),
        ("ab[*]", "ab" + 10 * "?"),
        (prompt_pattern("[1]"), "[1]" + 9 * "?"),
    ],
)
def test_gaps_of_a_prompt_are_left_open(pattern, spelled):
    row = TextPrompt(length=12).parse(pattern, lambda: (), print)
    tokens = row.tokens[0][row.documents[0] > 0]
    assert "".join("?" if token == OPEN else chr(token) for token in tokens) == spelled


@pytest.mark.parametrize("tokenizer", [Bytes(), Characters("abc é")])
def test_a_text_comes_back(tokenizer):
    assert tokenizer.decode(tokenizer.encode("abc é")) == "abc é"
    assert tokenizer.num_bytes()[tokenizer.encode("é")].sum() == 2


def test_a_strange_character_is_named():
    with pytest.raises(ValueError, match="'x' is none of the 3 characters"):
        Characters("abc").encode("abx")


def test_special_tokens_of_a_file_are_text_like_any_other(tmp_path):
    """Written into a text they are tokens of their own, and come back."""
    train_byte_pairs(["a cat sat"], 260, tmp_path / "tokenizer.json")
    library = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    library.add_special_tokens(["<end>"])
    library.save(str(tmp_path / "more.json"))
    pairs = BytePairs(str(tmp_path / "more.json"), file_size(tmp_path / "more.json"))
    tokens = pairs.encode("a cat<end>")
    assert tokens[-1] == library.token_to_id("<end>")
    assert pairs.decode(tokens) == "a cat<end>"
    assert pairs.num_bytes()[tokens].sum() == len("a cat<end>")
    with pytest.raises(ValueError, match=r"num_tokens=7: .* has \d+; make them the same"):
        BytePairs(pairs.file, 7).encode("a")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"version": 9}, "version 9, but a text set is 'dit_video.text_set' version 1"),
        ({"entries": [{}]}, "missing a required argument: 'file'"),
        ({"num_tokens": {"test": 1}}, "num_tokens=.*: must be by split"),
        ({"num_tokens": {"train": "1"}}, "train"),
        ({"tokenizer": {"class": "Split"}}, "tokenizer"),
        ({"files": []}, "files"),
    ],
)
def test_a_damaged_manifest_is_named_with_what_makes_another(made, tmp_path, change, named):
    content = json.loads((made / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps(content | change))
    with pytest.raises(ValueError, match=rf"manifest\.json: .*{named}.*; make it with: dit-video data text"):
        read_text_manifest(tmp_path)
