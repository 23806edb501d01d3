"""The Python tool: code that behaves badly, calls in chat form, answers."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from pure_rllib.data.problems import Problem
from pure_rllib.envs.python_process import PythonProcess
from pure_rllib.envs.python_tool import RULES, PythonTool, PythonToolEnv
from pure_rllib.rewards.base import FunctionVerifier
from pure_rllib.testing import byte_tokenizer, check_text_env, check_token_env

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TOOLS = (
    "{% if tools %}<|im_start|>system\nIn <tool_call>: {{ tools | tojson }}<|im_end|>\n"
    "{% endif %}" + CHATML.replace("m.role }}", "m.role|replace('tool', 'user') }}")
)
PROBLEMS = [Problem("6*7=?", "42", "a"), Problem("1+1=?", "2", "b")]


def call(code: str) -> str:
    asked = json.dumps({"name": "python", "arguments": {"code": code}})
    return f"I run it.\n<tool_call>\n{asked}\n</tool_call>"


def env(template: str = CHATML, **kwargs: Any) -> PythonToolEnv:
    tokenizer = byte_tokenizer(["<|im_start|>", "<|im_end|>"])
    tokenizer.chat_template = template
    settings: dict[str, Any] = {"problems": PROBLEMS[:1], "eval_problems": PROBLEMS[1:]}
    settings["verifier"] = FunctionVerifier(lambda gold, text: gold in text)
    return PythonToolEnv(tokenizer=tokenizer, **{**settings, **kwargs})


@pytest.mark.parametrize(
    ("code", "told", "is_well"),
    [
        ("print(6 * 7)", "42", True),
        ("x = 1", "(nothing was printed)", True),
        ("print(1)\n1 / 0", "1\nerror: ZeroDivisionError: division by zero", False),
        ("print(", "error: SyntaxError: '(' was never closed", False),
        ("\0\ud800", "error: ", False),
        ("import sys; sys.exit(3)", "error: exit status 3", False),
        ("input()", "error: EOFError: EOF when reading a line", False),
        ("'a' * 2**40", "error: MemoryError", False),
        ("print('ab' * 10**6)", "ab" * 30 + " [cut]\nerror: OSError", False),
        ("import os; os.kill(os.getpid(), 11)", "error: ended by SIGSEGV", False),
        ("import os; print(sorted(os.environ)[0])", "HOME", True),
    ],
    ids=lambda value: str(value)[:12].strip("\0\ud800\n") if value else None,
)
def test_code_is_told_what_became_of_it(code: str, told: str, is_well: bool) -> None:
    result = PythonProcess(time_limit_s=60.0, max_output_chars=60).run(code)
    assert result[0].startswith(told) and result[1] == is_well


def test_what_is_late_is_killed_with_all_that_it_started(tmp_path: Path) -> None:
    beats = tmp_path / "beats"
    code = f"""
import os, time
if os.fork() == 0:
    while True:
        open({str(beats)!r}, "a").write("x")
        time.sleep(0.01)
open({str(tmp_path / "folder")!r}, "w").write(os.getcwd())
while not os.path.exists({str(beats)!r}) or LOOPS:
    pass
"""
    late = PythonProcess(time_limit_s=0.5).run(code.replace("LOOPS", "True"))
    assert late == ("error: no end within 0.5 s", False)
    in_time = PythonProcess(time_limit_s=60.0).run(code.replace("LOOPS", "False"))
    assert in_time == ("(nothing was printed)", True)
    size = beats.stat().st_size
    time.sleep(0.05)
    assert beats.stat().st_size == size
    assert not Path((tmp_path / "folder").read_text()).exists()


def test_an_episode_calls_and_answers() -> None:
    one = PythonTool(
        PROBLEMS.__getitem__, env()._verify, PythonProcess(time_limit_s=60.0)
    )
    assert one.reset(seed=0)[0] == "6*7=?"
    told, reward, terminated, _, info = one.step(call("print(6*7)"))
    assert told == [{"role": "tool", "content": "42"}]
    assert (reward, terminated, info["verifiable_reward"]) == (None, False, 0.0)
    _, _, terminated, _, info = one.step("It is \\boxed{42}.")
    assert terminated and (info["verifiable_reward"], info["outcome"]) == (
        1.0,
        "correct",
    )
    assert info["parts"] == {"calls": 1, "failed_calls": 0}


@pytest.mark.parametrize(
    "turn",
    [
        "<tool_call>print(1)</tool_call>",
        "<tool_call>" + "[" * 10**5,
        '<tool_call>{"name": "python", "arguments": "print(1)"}</tool_call>',
        '<tool_call>{"name": "python", "arguments": {"code": 1}}</tool_call>',
        '<tool_call>{"name": "sh", "arguments": {"code": "ls"}}</tool_call>',
        "<tool_call>[]",
    ],
)
def test_11_a_call_that_cannot_be_read_is_told_so(turn: str) -> None:
    one = PythonTool(PROBLEMS.__getitem__, env()._verify, PythonProcess())
    one.reset(seed=0)
    told, _, terminated, _, info = one.step(turn)
    assert told[0]["content"].startswith("error: ") and not terminated  # type: ignore
    assert info["parts"] == {"calls": 1, "failed_calls": 1}


@pytest.mark.slow
def test_the_contract_is_kept() -> None:
    check_text_env(env().make_text_env, turns=[call("1/0")])
    check_token_env(env(max_response_tokens=24))


@pytest.mark.parametrize("template", [TOOLS, CHATML], ids=["tools", "system"])
def test_a_model_is_told_of_the_tool_in_its_own_form(template: str) -> None:
    made = env(template)
    prompt = made.tokenizer.decode(made.encode_prompt(made.problems[0]))
    has_tools = template is TOOLS
    assert ('"parameters": {' in prompt) == has_tools
    assert (RULES in prompt) != has_tools
    assert "6*7=?\n\nPut the answer within \\boxed{}.<|im_end|>\n<|im_start|>" in prompt
    with pytest.raises(ValueError, match=r"`prompt_template` .* must use the chat"):
        env(template, prompt_template="plain")


def test_a_template_without_the_role_hears_the_tool_as_the_user() -> None:
    drops = CHATML.replace("messages %}<", "messages if m.role != 'tool' %}<")
    for template, role in ((CHATML, "tool"), (drops, "user")):
        one: Any = env(template).make_text_env()
        one.reset(seed=0)
        assert one.step("<tool_call>[]")[0][0]["role"] == role


def test_16_training_and_held_out_tasks_are_other_problems() -> None:
    made = env()
    assert made.eval_problems is not None
    sources = made.problems, made.eval_problems
    assert [len(s) for s in sources] == [1, 1]
    assert [s[0].prompt for s in sources] == ["6*7=?", "1+1=?"]
    assert env(eval_problems=None).eval_problems is None
    with pytest.raises(ValueError, match=r"`problems` \(1 of 1 without an answer\)"):
        env(problems=[Problem("?")])
