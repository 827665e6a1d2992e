"""A few cases of each family of tools/stranger_files.py: read, or refused with an error that names the file."""

import pytest

from tools.fuzz_bench import GOOD, REFUSED, ending
from tools.stranger_files import STRANGER_FAMILIES


@pytest.mark.parametrize("name", ["card", "tokenizer", "scheduler", "tar", "array"])
def test_what_strangers_publish_is_read_or_refused_by_name(name, tmp_path):
    reader = STRANGER_FAMILIES[name].prepare(tmp_path)
    for case in range(40):
        outcome, what = ending(reader.read, reader.make(case))
        assert outcome in (GOOD, REFUSED), f"{name} {case}: {what}"


@pytest.mark.slow  # networks are imported as runs
@pytest.mark.parametrize("name", ["config", "text config", "model index"])
def test_what_configs_claim_is_refused_by_name(name, tmp_path):
    test_what_strangers_publish_is_read_or_refused_by_name(name, tmp_path)
