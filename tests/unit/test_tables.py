import math
import re

import pytest

from pure_rllib.reporting.tables import accuracy_table, format_table


def test_plain_table_aligns_numbers_right():
    rows: list[list[object]] = [["min", 0.5, 7], ["sum | x", None, 12]]
    assert format_table(["credit", "share", "n"], rows) == "\n".join(
        [
            "credit   share   n",
            "-------  -----  --",
            "min      0.500   7",
            "sum | x      -  12",
        ]
    )


def test_markdown_table_escapes_pipes():
    text = format_table(["credit", "n"], [["a|b", 1]], markdown=True)
    assert text.splitlines() == [
        "| credit |   n |",
        "| ------ | --: |",
        "| a\\|b   |   1 |",
    ]


def test_row_of_wrong_length_is_refused():
    with pytest.raises(ValueError, match="row of 1 cells"):
        format_table(["a", "b"], [[1]])


def test_accuracy_before_and_after():
    before: dict[str, float] = {}
    after: dict[str, float] = {}
    for metrics, values in ((before, (0.62, 0.55, 0.685)), (after, (0.96, 0.93, 0.98))):
        for suffix, value in zip(("", "_low", "_high"), values, strict=True):
            metrics[f"evaluation/greedy_accuracy{suffix}"] = value
        metrics["evaluation/sampled_accuracy"] = math.nan
        metrics["evaluation/response_tokens"] = 40.0
    lines = accuracy_table(before, after).splitlines()
    assert re.split("  +", lines[2]) == [
        "accuracy, greedy",
        "0.620 [0.550, 0.685]",
        "0.960 [0.930, 0.980]",
        "+0.340",
    ]
    assert "40.0" in lines[3] and "+0.0" in lines[3]
    assert len(lines) == 4  # sampled accuracy was not measured
