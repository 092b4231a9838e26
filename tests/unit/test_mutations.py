"""1,000 damaged sweep files (or STOCKPOT_MUTATIONS): each is loaded or refused with readable mistakes; nothing else happens."""

import os

import yaml
from mutations import SEEDS, mutated
from sweep_files import folder_with_data

from sweeps.describe import describe
from sweeps.load import LoadedSweep, from_record, load_text
from sweeps.problems import SpecError

COUNT = int(os.environ.get("STOCKPOT_MUTATIONS", "1000"))


def parses(text: str) -> bool:
    try:
        yaml.load(text, Loader=yaml.CSafeLoader)
    except (yaml.YAMLError, ValueError):
        return False
    return True


def outcome(text: str, folder) -> LoadedSweep | SpecError:
    try:
        return load_text(text.encode("utf-8"), folder)
    except SpecError as error:
        return error


def test_the_undamaged_files_load(tmp_path):
    folder_with_data(tmp_path)
    for text in SEEDS:
        assert isinstance(outcome(text, tmp_path), LoadedSweep), str(outcome(text, tmp_path))


def test_damaged_files_are_loaded_or_refused(tmp_path):
    folder_with_data(tmp_path)
    loaded = refused = readable = 0
    for text in mutated(COUNT):
        readable += parses(text)
        found = outcome(text, tmp_path)
        if isinstance(found, LoadedSweep):
            loaded += 1
            describe(found)
            assert from_record(found.record()) == found
            found.resolve(
                found.space.sample(lambda name, domain: next(iter(domain.grid())) if domain.size else domain.low)[0]
            )
        else:
            refused += 1
            message = str(found)
            assert found.problems
            assert all(problem.message and "\n" not in str(problem) for problem in found.problems), message
            assert "Input should" not in message
            assert "Traceback" not in message
    assert loaded + refused == COUNT
    assert readable >= 0.3 * COUNT
    assert loaded >= 0.02 * COUNT
    assert refused >= 0.5 * COUNT


def test_a_rule_of_the_whole_file_is_told_beside_other_mistakes(tmp_path):
    """Damaged file 4,265: the rule on the number of metrics is asked only once all fields are sound."""
    folder_with_data(tmp_path)
    found = outcome(SEEDS[2].split("metric:")[0] + "metric: []\nparameters: [a]\nkeep: 3\n", tmp_path)
    assert isinstance(found, SpecError)
    told = [str(problem) for problem in found.problems]
    assert sum("0 metrics; give 1 to 5" in text for text in told) == 1, told
    assert any(text.startswith("parameters") for text in told), told
