import io
import math
import time

from pure_rllib.reporting.metrics import METRICS
from pure_rllib.reporting.progress import (
    Progress,
    ProgressBar,
    iteration_line,
    working,
)

ROW = {
    "reward/total": 1.2345,
    "accuracy": 0.75,
    "response/tokens": 41.25,
    "kl/reference": 0.0123,
    "seconds/iteration": 3.1,
    "seconds/sample": 1.5,
    "seconds/learn": 1.25,
}


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_line_of_an_iteration():
    assert ROW.keys() <= METRICS.keys()
    expected = (
        "     7/60 |  +1.234 |    0.750 |    41.2 |   0.0123 |        3.10 (1.50, 1.25)"
    )
    line = iteration_line(7, 60, ROW)
    assert [c.strip() for c in line.split("|")] == [
        c.strip() for c in expected.split("|")
    ]
    assert len(iteration_line(60, 60, {})) == len(line)


def test_a_run_without_a_verifier_has_no_column_for_accuracy():
    stream = io.StringIO()
    with Progress(4, stream=stream, absent={"accuracy"}) as progress:
        progress.update(1, ROW)
    header, line = stream.getvalue().splitlines()
    assert "accuracy" not in header and "0.750" not in line
    assert header.count("|") == line.count("|") == 4


def test_kl_falls_back_to_the_old_policy():
    row = {**ROW, "kl/reference": math.nan, "kl/old_policy": 0.5}
    assert "0.5000" in iteration_line(1, 9, row)


def test_no_terminal_means_plain_aligned_lines_with_time_left():
    stream = io.StringIO()
    with Progress(4, first=2, stream=stream) as progress:
        progress.update(3, ROW)
        progress.update(4, ROW)
    text = stream.getvalue()
    assert "\r" not in text and "\x1b" not in text
    header, first, last = text.splitlines()
    assert header.startswith("     iter |  reward") and header.endswith("time left")
    bars = [[i for i, c in enumerate(line) if c == "|"] for line in (header, first)]
    assert bars[0] == bars[1]
    assert first.split("|")[0].strip() == "3/4"
    assert last.endswith("00:00")  # nothing is left after the last iteration


def test_terminal_shows_a_bar_and_one_line_per_iteration():
    stream = Terminal()
    with Progress(2, stream=stream) as progress:
        for iteration in (1, 2):
            progress.update(iteration, ROW)
    text = stream.getvalue()
    assert text.count("3.10 (1.50, 1.25)") == 2
    assert "left" in text and "2/2" in text


def test_a_file_has_a_line_now_and_then():
    stream = io.StringIO()
    with ProgressBar(4, stream=stream, line_every_s=0.0) as bar:
        bar.show(2)
        bar.write("between")
        bar.show(4)
    with ProgressBar(4, stream=stream) as bar:
        bar.show(4)
    assert stream.getvalue().splitlines() == [
        "2/4 | 00:00 elapsed, 00:00 left",
        "between",
        "4/4 | 00:00 elapsed, 00:00 left",
    ]


def test_an_iteration_that_takes_long_is_seen_to_go_on():
    stream = io.StringIO()
    with Progress(4, first=2, stream=stream, line_every_s=0.02) as progress:
        time.sleep(0.2)
        progress.update(3, ROW)
        time.sleep(0.2)
    written = stream.getvalue()
    time.sleep(0.05)
    assert stream.getvalue() == written, "nothing after the end"
    _, *lines = written.splitlines()
    (of_update,) = (i for i, line in enumerate(lines) if "3.10 (1.50, 1.25)" in line)
    assert of_update > 0 and set(lines[:of_update]) == {
        "2/4 iterations | 00:00 elapsed, - left"
    }
    assert lines[-1].startswith("3/4 iterations | 00:00 elapsed, 00:0")


def test_work_without_steps_says_that_it_goes_on():
    stream = io.StringIO()
    with working("reading data", stream=stream, line_every_s=0.02):
        time.sleep(0.2)
    with working("something short", stream=stream):
        pass
    assert set(stream.getvalue().splitlines()) == {"reading data | 00:00 elapsed"}


def test_the_time_of_a_bar_goes_on():
    stream = Terminal()
    with ProgressBar(4, stream=stream) as bar:
        before = len(stream.getvalue())
        time.sleep(1.2)
        assert len(stream.getvalue()) > before
        bar.show(4)
