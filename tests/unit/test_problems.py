"""Tests of loading problems, on small files and on real ones where they are there."""

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from pure_rllib.data.problems import ListProblems, Problem, load_problems

ROWS: list[dict] = [
    {"question": "1+1=?", "answer": "2", "level": "1"},
    {"question": "2+2=?", "answer": "null", "level": "2", "ref_answer": "4"},
    {"question": "3+3=?", "answer": None, "level": "2"},
    {"question": "4+4=?", "answer": " 8 ", "level": "3"},
]


def write(path: Path, rows: Sequence[dict]) -> Path:
    if path.suffix == ".json":
        path.write_text(json.dumps(rows, indent=1))
    elif path.suffix == ".jsonl":
        path.write_text("\n\n".join(json.dumps(row) for row in rows) + "\n")
    else:
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".parquet"])
def test_files_of_each_format_give_the_same_problems(tmp_path: Path, suffix: str):
    problems = load_problems(write(tmp_path / f"p{suffix}", ROWS))
    assert [p.prompt for p in problems] == ["1+1=?", "2+2=?", "3+3=?", "4+4=?"]
    assert [p.answer for p in problems] == ["2", None, None, "8"]
    assert [p.problem_id for p in problems] == ["0", "1", "2", "3"]
    assert [p.metadata for p in problems] == [{"level": n} for n in "1223"]
    assert (len(problems), problems.num_answers) == (4, 2)


def test_csv_files_hold_texts(tmp_path: Path):
    text = '\ufeffproblem,answer\n"a, ""b""\nc",007\nd,\n'
    (tmp_path / "p.csv").write_text(text, encoding="utf-8")
    problems = load_problems(tmp_path / "p.csv")
    assert [p.prompt for p in problems] == ['a, "b"\nc', "d"]
    assert [p.answer for p in problems] == ["007", None]


def test_the_first_of_several_fields_counts(tmp_path: Path):
    rows = [{"sentence": "a", "label": 1, "answer": 2}, {"sentence": "b", "label": 3}]
    problems = load_problems(
        write(tmp_path / "p.json", rows),
        prompt_field=("text", "sentence"),
        answer_field=("label", "answer"),
    )
    assert [(p.prompt, p.answer) for p in problems] == [("a", "1"), ("b", "3")]


def test_saved_data_set_folders_are_read_by_split(tmp_path: Path):
    import datasets

    rows = [{"prompt": "a", "gold": 3}, {"prompt": "b", "gold": 4}]
    splits = {
        "train": datasets.Dataset.from_list(rows),
        "test": datasets.Dataset.from_list(rows[:1]),
    }
    datasets.DatasetDict(splits).save_to_disk(str(tmp_path / "d"))
    assert [p.answer for p in load_problems(tmp_path / "d")] == ["3", "4"]
    assert len(load_problems(tmp_path / "d", split="test")) == 1
    with pytest.raises(ValueError, match=r"`split` \('dev'\).*train, test"):
        load_problems(tmp_path / "d", split="dev")


def test_fields_are_found_or_named(tmp_path: Path):
    rows = [{"id": "a", "text": "x", "problem": "y", "final_answer": ["1", "2"]}]
    path = write(tmp_path / "p.json", rows)
    (problem,) = load_problems(path)
    assert problem == Problem("y", "1, 2", "a", {"text": "x"})
    (problem,) = load_problems(path, prompt_field="text", id_field="problem")
    assert (problem.prompt, problem.problem_id) == ("x", "y")
    for setting in ("prompt_field", "answer_field", "id_field", "answer_from_solution"):
        with pytest.raises(
            ValueError, match=rf"`{setting}` \('gone'\).*id, text, problem"
        ):
            load_problems(path, **{setting: "gone"})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("value", "answer"),
    [(27.0, "27"), (0.5, "0.5"), (12, "12"), ("", None), (" ", None), (["a"], "a")],
)
def test_answers_of_other_types(tmp_path: Path, value: object, answer: str | None):
    path = write(tmp_path / "p.json", [{"problem": "x", "answer": value}])
    assert load_problems(path)[0].answer == answer


def test_without_an_answer_field_all_answers_are_unknown(tmp_path: Path):
    assert load_problems(write(tmp_path / "p.json", [{"prompt": "x"}])).num_answers == 0


def test_hidden_answers_are_only_read_when_asked_for(tmp_path: Path):
    path = write(tmp_path / "p.json", ROWS)
    assert all("ref_answer" not in p.metadata for p in load_problems(path))
    problems = load_problems(path, answer_field="ref_answer")
    assert [p.answer for p in problems] == [None, "4", None, None]


def test_answers_from_worked_solutions(tmp_path: Path):
    rows = [
        {"problem": "a", "solution": r"\boxed{1}, so \boxed{\frac{1}{2}}."},
        {"problem": "b", "solution": "3+4=<<3+4=7>>7\n#### 7"},
        {"problem": "c", "solution": "no answer"},
    ]
    path = write(tmp_path / "p.jsonl", rows)
    problems = load_problems(path, answer_from_solution="solution")
    assert [p.answer for p in problems] == [r"\frac{1}{2}", "7", None]
    with pytest.raises(ValueError, match=r"`answer_field`.*`answer_from_solution`"):
        load_problems(path, answer_field="problem", answer_from_solution="solution")


USER = {"role": "user", "content": "1+1?"}
SYSTEM = {"role": "system", "content": "Be brief."}


@pytest.mark.parametrize(
    ("row", "options"),
    [
        # verl's
        (
            {"prompt": [USER], "reward_model": {"style": "rule", "ground_truth": "2"}},
            {},
        ),
        # TRL's, plain and conversational
        ({"prompt": "1+1?", "answer": 2}, {}),
        ({"prompt": [USER], "solution": "2"}, {"answer_field": "solution"}),
        ({"prompt": [USER], "ground_truth": "2"}, {}),
        ({"messages": [USER], "gold": ["2"]}, {}),
        # OpenAI's content blocks
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "text", "text": "1+1?"}]}
                ],
                "answer": "2",
            },
            {},
        ),
        (
            {"ask": {"text": "1+1?"}, "check": {"gold": 2.0}},
            {"prompt_field": "ask.text", "answer_field": "check.gold"},
        ),
        ({"a.b": "1+1?", "answer": "2"}, {"prompt_field": "a.b"}),
    ],
)
@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_rows_of_other_libraries(tmp_path: Path, row: dict, options: dict, suffix: str):
    (problem,) = load_problems(write(tmp_path / f"p{suffix}", [row]), **options)
    assert (problem.prompt, problem.answer, problem.history) == ("1+1?", "2", ())
    assert "2" not in str(problem.metadata)  # a gold answer is not shown elsewhere


def test_a_conversation_s_last_message_is_the_problem(tmp_path: Path):
    reply = {"role": "assistant", "content": "Yes?"}
    rows = [{"messages": [SYSTEM, {**USER, "content": "Hi"}, reply, USER]}]
    for suffix in (".json", ".parquet"):
        (problem,) = load_problems(write(tmp_path / f"p{suffix}", rows))
        assert problem.prompt == "1+1?"
        assert problem.history == (SYSTEM, {**USER, "content": "Hi"}, reply)


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([USER, {"role": "assistant", "content": "2"}], "must end with a message of"),
        ([SYSTEM], "must end with a message of the user"),
        ([{"role": "user", "content": " "}], "not blank"),
        ([{"from": "human", "value": "1+1?"}], "`role` and `content`"),
        (["1+1?"], "`role` and `content`"),
        ([{"role": "user", "content": [{"type": "image"}]}], "the content text"),
        ([], "text that is not blank, or messages"),
    ],
)
def test_messages_that_cannot_be_kept_are_refused(tmp_path, messages, reason):
    path = write(tmp_path / "p.jsonl", [{"prompt": "x"}, {"prompt": messages}])
    with pytest.raises(ValueError, match=rf"`prompt` .*row 2 .*{reason}"):
        load_problems(path)


def test_fields_are_looked_for_in_all_rows(tmp_path: Path):
    rows = [{"question": "a"}, {"question": "b", "answer": "6", "id": "x"}]
    problems = load_problems(write(tmp_path / "p.jsonl", rows))
    assert [p.answer for p in problems] == [None, "6"]
    assert [p.problem_id for p in problems] == ["0", "x"]
    # A column of nulls is none; another one has the answers.
    path = write(tmp_path / "q.jsonl", [{"problem": "a", "answer": None, "gold": 3}])
    assert load_problems(path)[0].answer == "3"


def test_answers_in_two_places_are_refused(tmp_path: Path):
    rows = [{"question": "a", "answer": "1"}, {"question": "b", "gold": "2"}]
    path = write(tmp_path / "p.jsonl", rows)
    with pytest.raises(ValueError, match=r"`answer_field`.*row 2; .*`gold`.*`answer`"):
        load_problems(path)
    assert load_problems(path, answer_field="gold").num_answers == 1


@pytest.mark.parametrize("missing", [math.nan, "NaN", "NULL", [], None])
def test_a_missing_answer_is_unknown(tmp_path: Path, missing: object):
    rows = [{"question": "a", "answer": missing}, {"question": "b", "answer": 3}]
    assert load_problems(write(tmp_path / "p.jsonl", rows)).num_answers == 1


@pytest.mark.parametrize(
    ("solution", "answer"),
    [
        ("So \\boxed{7}.\n\n#### Check\n3+4=7", "7"),
        ("So \\boxed{7}.\n\n#### Check: 3+4=7", "7"),
        ("#### Plan\nAdd.\n#### 7\n", "7"),
        ("3+4 is #### 1,234", "1,234"),
        ("#### Check\n3+4=7", None),
        ("\\boxed{}", None),
        (math.nan, None),
    ],
)
def test_headings_are_no_answers(tmp_path: Path, solution: object, answer: str | None):
    path = write(tmp_path / "p.jsonl", [{"problem": "q", "s": solution}])
    assert load_problems(path, answer_from_solution="s")[0].answer == answer


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("p.json", '{"question": "a"}\n\n{"question": "b"}\n'),
        ("p.jsonl", '[{"question": "a"}, {"question": "b"}]'),
        ("p.jsonl", '\ufeff[\n  {"question": "a"},\n  {"question": "b"}\n]\n'),
    ],
)
def test_json_under_another_name(tmp_path: Path, name: str, text: str):
    (tmp_path / name).write_text(text)
    assert [p.prompt for p in load_problems(tmp_path / name)] == ["a", "b"]


def test_ids_become_unique():
    problems = ListProblems(
        Problem("x", problem_id=name) for name in ["a", "a-2", "a", "a", ""]
    )
    assert [p.problem_id for p in problems] == ["a", "a-2", "a-3", "a-4", "4"]


def test_answer_fraction_hides_a_fixed_nested_share(tmp_path: Path):
    rows = [{"problem": f"problem {n}", "answer": str(n)} for n in range(200)]
    path = write(tmp_path / "p.jsonl", rows)
    turned = write(tmp_path / "q.jsonl", rows[::-1])

    def kept(path: Path, fraction: float, seed: int = 0) -> set[str]:
        problems = load_problems(path, answer_fraction=fraction, seed=seed)
        assert len(problems) == 200
        return {p.prompt for p in problems if p.answer is not None}

    assert len(kept(path, 0.1)) == 20
    assert kept(path, 0.1) == kept(turned, 0.1)
    assert kept(path, 0.1) < kept(path, 0.5)
    assert kept(path, 0.1) != kept(path, 0.1, seed=1)
    assert kept(path, 0.0) == set()


def test_limit_takes_the_first(tmp_path: Path):
    assert len(load_problems(write(tmp_path / "p.json", ROWS), limit=3)) == 3


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("p.jsonl", '{"prompt": "x"}\n\n{"prompt": \n', "p.jsonl, line 3: broken JSON"),
        ("p.json", '[{"prompt": "x"},\n{]', "p.json, line 2: broken JSON"),
        ("p.jsonl", '{"prompt": "x"}\n[1]\n', r"p.jsonl, line 2: \(\[1\]\)"),
        ("p.json", '{"prompt": "x"}', r"p.json \(dict\) must hold one"),
        ("p.json", "[]", r"\(0 rows\)"),
        ("p.jsonl", "\n", r"\(0 rows\)"),
        ("p.tsv", "prompt\nx", r"suffix '.tsv'"),
        ("p.csv", "prompt,answer\nx,1\n\ny\n", "p.csv, line 4: broken CSV, not 2"),
        ("p.csv", 'prompt\n"x\n', "broken CSV, unexpected end"),
        ("p.csv", "prompt,answer\n", r"\(0 rows\)"),
        ("p.parquet", "PAR", "no Parquet file"),
        ("p.json", '[{"text": "x", "b": 1}]', r"`prompt_field`.*text, b"),
        ("p.json", '[{"prompt": "x"}, {"prompt": " "}]', r"\(' '\) of .*row 2"),
        ("p.json", '[{"prompt": "x", "answer": {"a": 1}}]', r"answer \({'a': 1}\)"),
        ("p.json", '[{"prompt": "x", "answer": -Infinity}]', r"answer \(-inf\) of"),
        ("p.json", '{"prompt": "x"}\n{"prompt":', "p.json, line 2: broken JSON"),
    ],
)
def test_broken_sources_are_named(tmp_path: Path, name: str, text: str, message: str):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        load_problems(tmp_path / name)


def test_broken_bytes_are_named(tmp_path: Path):
    (tmp_path / "p.jsonl").write_bytes(b'{"problem": "x"}\n{"problem": "\xff"}\n')
    with pytest.raises(ValueError, match="line 2: not UTF-8"):
        load_problems(tmp_path / "p.jsonl")


@pytest.mark.parametrize(
    ("name", "value"),
    [("split", "test"), ("subset", "main"), ("answer_fraction", 1.5), ("limit", 0)],
)
def test_bad_settings_are_named(tmp_path: Path, name: str, value: object):
    path = write(tmp_path / "p.json", ROWS)
    with pytest.raises(ValueError, match=re.escape(f"`{name}` ({value!r})")):
        load_problems(path, **{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("source", ["/no/such/folder", "gone.json", "./gone", "a/b/c"])
def test_missing_sources_are_named(source: str):
    with pytest.raises(FileNotFoundError, match=source):
        load_problems(source)


@pytest.mark.parametrize(
    ("name", "num_problems", "num_answers", "options"),
    [
        ("train/8k_math_879_answers.json", 8523, 879, {}),
        ("train/gsm8k/train.jsonl", 7473, 7473, {"answer_from_solution": "answer"}),
        ("eval/math500/test.jsonl", 500, 500, {}),
        ("eval/amc23/test.jsonl", 40, 40, {}),
        ("eval/olympiadbench/test.jsonl", 675, 675, {}),
        (
            "eval/minerva_math/test.jsonl",
            272,
            272,
            {"answer_from_solution": "solution"},
        ),
    ],
)
def test_real_data_sets(
    shared_dir: Path,
    name: str,
    num_problems: int,
    num_answers: int,
    options: dict[str, str],
):
    path = shared_dir / "data" / name
    if not path.exists():
        pytest.skip(f"no data set at {path}")
    problems = load_problems(path, **options)  # type: ignore[arg-type]
    assert (len(problems), problems.num_answers) == (num_problems, num_answers)
    assert len({p.problem_id for p in problems}) == num_problems
