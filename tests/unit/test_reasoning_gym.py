"""reasoning-gym's tasks as problems and scores, from made items up to whole runs."""

import json
import os
import pickle
import subprocess
import sys
from typing import Any

import pytest

from pure_rllib.data.problems import Problem
from pure_rllib.envs.adapters.reasoning_gym import ReasoningGymEnv, split
from pure_rllib.rewards import reasoning_gym as tasks
from pure_rllib.rewards.verifier.task_process import TaskItems
from pure_rllib.rewards.verifier.workers import ENVIRONMENT
from pure_rllib.rollouts.env_summary import first_lines
from pure_rllib.testing import byte_tokenizer, check_token_env

# Makes an item in more than a fortieth of a second.
SLOW = {
    *("futoshiki", "intermediate_integration", "knight_swap", "puzzle24"),
    *("quantum_lock", "sokoban", "sudoku", "zebra_puzzles"),
}
WITHOUT_GOLD = {
    *("boxnet", "graph_color", "propositional_logic", "rubiks_cube", "rush_hour"),
}
JUNK = ("?!", "xyzzy", "#=~")
NUM_ITEMS = 6


@pytest.fixture(scope="session", autouse=True)
def package() -> Any:
    return pytest.importorskip(
        "reasoning_gym", reason="reasoning-gym is absent: its tasks were not tried"
    )


def setting(task: str, size: int = 8, **config: Any) -> str:
    return json.dumps({"task": task, "size": size, "seed": 0, "config": config})


def env_of(task: str, **kwargs: Any) -> ReasoningGymEnv:
    chosen = {"size": 8, "eval_size": 4, "answer_form": "response", **kwargs}
    return ReasoningGymEnv(task=task, tokenizer=byte_tokenizer(), **chosen)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<answer> 5 </answer>", "5"),
        ("<think><answer>4</answer></think><answer>5</answer> sure", "5"),
        ("<answer>4 <answer>5</answer>", "5"),
        ("<answer>5</answer> or <answer>6", "5"),
        ("5", None),
        ("</answer><answer>5", None),
    ],
)
def test_the_last_closed_tag_holds_the_answer(text: str, answer: str | None) -> None:
    assert tasks.answer_in_tag(text) == answer


def test_no_question_is_in_both_splits_or_twice() -> None:
    problems = [Problem(text, problem_id=str(i)) for i, text in enumerate("abacdbbe")]
    train, held_out = split(problems, 5)
    assert [p.prompt for p in train] == ["a", "c", "d"]
    assert [p.problem_id for p in train] == ["0", "3", "4"]
    assert [p.prompt for p in held_out] == ["b", "e"]


@pytest.mark.parametrize(
    ("task", "config", "fragment"),
    [
        ("leg_cuonting", {}, "near it are leg_counting"),
        ("nothing_like_it_at_all", {}, "`pure-rllib envs` lists all"),
        ("leg_counting", {"max_animal": 3}, "its keys are min_animals (3), max_anim"),
        ("leg_counting", {"size": 3}, "a key `size` that leg_counting does not know"),
        ("leg_counting", {"max_animals": -3}, "max_animals must be >= min_animals"),
        ("leg_counting", {"max_animals": "x"}, "must fit the task leg_counting"),
        ("composite", {}, "`config.datasets` (None) must list what is mixed"),
        ("composite", {"datasets": [{"name": "leg_cuonting"}]}, "leg_counting"),
        (
            "composite",
            {"datasets": [{"name": "leg_counting", "weight": 0}]},
            "Weight must be positive",
        ),
    ],
)
def test_a_wrong_task_or_config_is_named(
    task: str, config: dict[str, Any], fragment: str
) -> None:
    with pytest.raises(ValueError) as error:
        # Before the tokenizer, which is not there, is looked for.
        ReasoningGymEnv(task=task, config=config, tokenizer="/no/such/folder")
    assert fragment in str(error.value)


def test_the_extra_is_named_where_the_package_is_not_installed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tasks, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'pure-rllib\[reasoning-gym\]'"):
        tasks.Task("leg_counting", 1)


def test_scores_are_the_tasks_own_grades_and_nothing_for_no_grade() -> None:
    spell = TaskItems(setting("spell_backward"))
    word = spell.item(0)["answer"]
    assert spell.check("0", word)["outcome"] == "correct"
    near = spell.check("0", "?" + word[1:])
    assert near["outcome"] == "incorrect" and 0.5 < near["score"] < 1.0
    legs = TaskItems(setting("leg_counting"))
    gold = legs.item(0)["answer"]
    assert legs.check("0", gold)["score"] == 1.0
    # The package's default pays for any text with the gold answer in it.
    assert legs.dataset.score_answer(f"{gold} legs", legs.item(0)) > 0.0
    assert legs.check("0", f"{gold} legs")["score"] == 0.0
    halting = TaskItems(setting("game_of_life_halting"))
    number = next(i for i in range(8) if halting.item(i)["answer"] == "False")
    assert halting.dataset.score_answer("xyzzy", halting.item(number)) == 1.0
    assert halting.check(str(number), "xyzzy")["score"] == 0.0
    assert halting.check(str(number), "False")["score"] == 1.0


def test_a_scorer_that_raises_is_an_error_worth_nothing() -> None:
    factors = TaskItems(setting("prime_factorization"))
    with pytest.raises(ValueError):
        factors.dataset.score_answer("xyzzy", factors.item(0))
    found = factors.check("0", "xyzzy")
    assert (found["outcome"], found["score"]) == ("error", 0.0)


def test_no_item_is_out_of_range() -> None:
    with pytest.raises(IndexError):
        TaskItems(setting("leg_counting")).item(-1)
    with pytest.raises(IndexError):
        TaskItems(setting("leg_counting")).item(8)


def test_parts_of_a_composite_data_set_score_their_own_items() -> None:
    parts = [{"name": "leg_counting"}, {"name": "spell_backward", "weight": 2.0}]
    mixed = TaskItems(setting("composite", 24, datasets=parts))
    found = set()
    for index in range(24):
        item = mixed.item(index)
        source = item["metadata"]["source_dataset"]
        found.add(source)
        assert mixed.check(str(index), item["answer"])["score"] == 1.0
        near = mixed.check(str(index), item["answer"] + "?")["score"]
        assert (near > 0.0) == (source == "spell_backward")
    assert found == {"leg_counting", "spell_backward"}


@pytest.mark.slow
def test_an_environment_asks_verifies_and_says_what_it_left_out() -> None:
    env = env_of("chain_sum", config={"max_terms": 2, "max_digits": 1}, size=400)
    assert env.eval_problems is not None
    asked, held_out = (
        {source[i].prompt for i in range(len(source))}
        for source in (env.problems, env.eval_problems)
    )
    assert asked.isdisjoint(held_out) and len(held_out) == 4
    assert len(asked) == len(env.problems)
    assert env.num_equal_questions == 400 - len(env.problems) > 100
    assert f"left out        {env.num_equal_questions}, their" in first_lines(env)
    check_token_env(env)
    problem = env.problems[0]
    verdict = env.judge.verify_one(problem, f" {problem.answer}\n")
    assert verdict is not None and verdict.outcome == "correct"
    again = pickle.loads(pickle.dumps(env.judge.verifier))
    (no_answer,) = again.verify_problems([problem], [" \n"])
    assert no_answer.outcome == "no_answer" and no_answer.reward == 0.0
    assert not again._pool.pids, "asked without an answer"
    env.close()


@pytest.mark.slow
def test_an_answer_that_never_ends_is_a_timeout() -> None:
    env = env_of("countdown", scorer_kwargs={"time_limit_s": 0.5})
    problem = env.problems[0]
    verifier = env.judge.verifier
    assert isinstance(verifier, tasks.TaskVerifier)
    late, right = verifier.verify_problems(
        [problem] * 2, ["9**9**9**9", str(problem.answer)]
    )
    assert (late.outcome, late.reward) == ("timeout", 0.0)
    assert right.outcome == "correct"
    env.close()


EVERY_TASK = f"""
import json, sys
from pure_rllib.rewards.verifier.task_process import TaskItems
for task in json.loads(sys.argv[1]):
    asked = dict(task=task, size={NUM_ITEMS}, seed=7, config={{}})
    items = TaskItems(json.dumps(asked))
    made = [items.item(i) for i in range({NUM_ITEMS})]
    golds = [None if i["answer"] is None else str(i["answer"]).strip() for i in made]
    print("\\nitem", json.dumps([
        task,
        [i["question"] for i in made],
        [g and items.check(str(n), g)["score"] for n, g in enumerate(golds)],
        [g and items.dataset.score_answer(g, made[n]) for n, g in enumerate(golds)],
        [items.check(str(n), j)["score"] for n in range(len(made)) for j in {JUNK}],
    ]))
"""


@pytest.mark.slow
def test_every_fast_task_is_the_same_in_all_processes_and_pays_for_gold_only() -> None:
    names = [n for n in tasks.known_tasks() if n not in {"composite", *SLOW}]
    assert len(names) > 90
    command = [sys.executable, "-W", "ignore", "-c", EVERY_TASK, json.dumps(names)]
    processes = [
        subprocess.Popen(
            command,
            env={**os.environ, **ENVIRONMENT},
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    first, second = (
        [json.loads(x[5:]) for x in p.communicate()[0].splitlines() if x[:5] == "item "]
        for p in processes
    )
    assert [row[0] for row in first] == names
    for (task, questions, golds, upstream, junk), again in zip(
        first, second, strict=True
    ):
        assert questions == again[1], f"{task} differs from process to process"
        is_known = task not in WITHOUT_GOLD
        assert golds == ([1.0] * NUM_ITEMS if is_known else [None] * NUM_ITEMS), task
        assert upstream == golds, f"{task}: white space counts"
        assert junk == [0.0] * len(junk), f"{task} pays for junk"
        train, held_out = split([Problem(q) for q in questions], NUM_ITEMS - 2)
        assert {p.prompt for p in train}.isdisjoint(p.prompt for p in held_out)
