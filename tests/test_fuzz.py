"""The fuzz harness: a slice of it against the decoder, and proof that it notices what it looks for."""

import sys
from pathlib import Path

import pytest

sys.path.append(
    str(Path(__file__).parent.parent)
)  # fuzz is no part of the distribution; at the end, so that wheels win

from fuzz.bombs import bombs, png
from fuzz.cli import table
from fuzz.judge import FAILURES, judge
from fuzz.mutations import MUTATIONS, Case, make_case
from fuzz.seeds import FORMATS, seeds

SLICE = 60


def test_damaged_images_become_pixels_or_typed_errors():
    light = bombs(heavy=False)
    verdicts = list(judge([*(make_case(number, seed=7) for number in range(SLICE)), *light], timeout=120))
    assert [verdict for verdict in verdicts if verdict.outcome in FAILURES] == []
    assert {verdict.outcome for verdict in verdicts} == {"pixels", "error"}
    assert len(verdicts) == SLICE + len(light)
    assert f"| all |  | {SLICE + len(light)} |" in table(verdicts)


def test_a_case_is_the_same_by_its_number_alone():
    cases = [make_case(number, seed=3) for number in range(40)]
    assert cases[17] == make_case(17, seed=3)
    assert cases[17] != make_case(17, seed=4)
    assert {case.kind for case in cases} == set(FORMATS)
    assert {case.mutation for case in cases} == set(MUTATIONS)


@pytest.mark.parametrize("kind", FORMATS)
def test_sound_images_are_pixels(kind):
    cases = [Case(0, kind, name, "none", data) for name, data in seeds(kind).items()]
    assert [verdict.outcome for verdict in judge(cases, timeout=120)] == ["pixels"] * len(cases)


BAD = """
import os, subprocess, time
from pathlib import Path
import numpy as np
from featreg.errors import ImageError

def decode(data):
    if data == b"escape":
        raise KeyError("x")
    if data == b"exit":
        os._exit(3)
    if data == b"hang":
        time.sleep(1000)
    if data == b"write":
        Path("left behind").write_text("x")
    if data == b"elsewhere":
        os.open(os.devnull, os.O_WRONLY)
    if data == b"program":
        subprocess.run(["true"])
    if data == b"form":
        return np.zeros((2, 2))[:, :, None]
    if data == b"error":
        raise ImageError("fine")
    return np.zeros((2, 2, 3), np.uint8)
"""


def test_the_judge_notices_everything_else(tmp_path, monkeypatch):
    (tmp_path / "bad_decoder.py").write_text(BAD)
    monkeypatch.syspath_prepend(str(tmp_path))
    expected = {
        b"escape": "escaped",
        b"exit": "crash",
        b"fine": "pixels",
        b"error": "error",
        b"write": "write",
        b"elsewhere": "write",
        b"program": "write",
        b"form": "escaped",
    }
    cases = [Case(number, "PNG", "", "", data) for number, data in enumerate(expected)]
    verdicts = judge(cases, timeout=120, decoder="bad_decoder:decode")
    assert {verdict.case.data: verdict.outcome for verdict in verdicts} == expected
    [silent] = judge([Case(0, "PNG", "", "", b"hang")], timeout=0.5, decoder="bad_decoder:decode")
    assert silent.outcome == "hang"


def test_a_bomb_is_what_it_says():
    """The one whose pixels fit, small: a sound image, made by hand."""
    [verdict] = judge([Case(0, "PNG", "", "", png(3, 2, bytes(2 * (1 + 9))))], timeout=120)
    assert (verdict.outcome, verdict.said) == ("pixels", "3x2")
