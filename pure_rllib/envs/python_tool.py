"""Mathematics with a Python tool, called in the form of the model's chat template."""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from transformers import PreTrainedTokenizerBase

from pure_rllib.data.bridge import Bridge
from pure_rllib.data.problems import Problem, ProblemSource
from pure_rllib.data.prompts import PromptTemplate, make_template
from pure_rllib.envs.math_env import read_problems
from pure_rllib.envs.python_process import PythonProcess
from pure_rllib.envs.text_env import StepResult, TextTasks
from pure_rllib.envs.text_token_env import TextTokenEnv
from pure_rllib.envs.tokenizers import load_tokenizer
from pure_rllib.rewards.base import AnyVerifier, Verdict
from pure_rllib.rewards.make import make_verifier

PYTHON = {
    "type": "function",
    "function": {
        "name": "python",
        "description": "Runs Python code and returns what it prints.",
        "parameters": {
            "type": "object",
            "properties": {"code": {"type": "string", "description": "The code."}},
            "required": ["code"],
        },
    },
}
"""The tool, as chat templates take it in `tools`."""

RULES = (
    "You can run Python code, which returns what it prints. Call it so, and nothing "
    'behind it:\n<tool_call>\n{"name": "python", "arguments": {"code": "print(6*7)"}}'
    "\n</tool_call>"
)
"""Says the same to a model whose chat template does not."""

_CALL = re.compile(r"<tool_call>(.*?)(?:</tool_call>|\Z)", re.DOTALL)
_PROMPT = {"chat": True, "template": "{problem}\n\nPut the answer within \\boxed{{}}."}


class PythonTool:
    """Poses a problem; a turn without a call of the tool is the answer to it.

    Of several calls in a turn the first one counts. What is wrong with a call, or with
    its code, is said to the policy.

    Args:
        problem: that a task's seed names.
        verify: judges the answer.
        process: runs code.
        role: of messages in which the tool answers.
    """

    def __init__(
        self,
        problem: Callable[[int], Problem],
        verify: Callable[[Problem, str], Verdict | None],
        process: PythonProcess,
        role: str = "tool",
    ):
        self._problem_of, self._verify = problem, verify
        self._process, self._role = process, role

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        """Poses the seed's problem."""
        self._problem = self._problem_of(seed or 0)
        self._parts = {"calls": 0, "failed_calls": 0}
        return self._problem.prompt, {}

    def step(self, action: str) -> StepResult:
        """Runs code, or judges the answer."""
        call = _CALL.search(action)
        if call is None:
            verdict = self._verify(self._problem, action) or Verdict("error")
            info = {
                "verifiable_reward": verdict.reward,
                "outcome": verdict.outcome,
                "parts": self._parts,
            }
            return "", None, True, False, info
        result, is_well = self._answered(call[1])
        self._parts["calls"] += 1
        self._parts["failed_calls"] += not is_well
        info = {"verifiable_reward": 0.0, "parts": self._parts}
        told = [{"role": self._role, "content": result}]
        return told, None, False, False, info

    def _answered(self, call: str) -> tuple[str, bool]:
        try:
            asked = json.loads(call, strict=False)
            name, code = asked["name"], asked["arguments"]["code"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            return (
                f"error: a call is JSON with name and arguments; {error!r:.99}",
                False,
            )
        if name != "python" or not isinstance(code, str):
            return "error: the only tool is python, and its code is a string", False
        return self._process.run(code)


class PythonToolEnv(TextTokenEnv):
    r"""Answers mathematics problems with a tool that runs Python.

    A call is `<tool_call>{"name": "python", "arguments": {"code": ...}}</tool_call>`,
    as Qwen's models and those of Hermes write it. A chat template that knows this form
    is given the tool as `tools`; with another one the system message says the form. The
    tool answers with the role `tool`, or as the user where the template has no such
    role. The verifier judges the turn without a call. `parts` are `calls` and
    `failed_calls`. Code runs as `PythonProcess` says: with limits, and no more than
    that.

    ## Arguments
    Args:
        tokenizer: folder or hub id of the policy's tokenizer, or the tokenizer.
        problems: see `MathEnv`; each must have an answer.
        eval_problems: held-out problems, or None.
        verifier: see `MathEnv`.
        verifier_kwargs: see `MathEnv`.
        prompt_template: see `make_template`; it must use the chat template.
        time_limit_s: seconds that a call may take.
        memory_limit_mb: address space of a call's process, in MiB.
        max_output_chars: of what a call returns.
        max_prompt_tokens: longer prompts are dropped and counted.
        **kwargs: the other arguments of `TextTokenEnv`; `max_turns` is 4 and
            `max_concurrent_envs` 8 by default.

    Raises:
        ValueError: a setting is wrong, or a problem has no answer.
    """

    def __init__(
        self,
        *,
        tokenizer: str | PreTrainedTokenizerBase,
        problems: str | Mapping[str, Any] | list[Problem] | ProblemSource,
        eval_problems: str
        | Mapping[str, Any]
        | list[Problem]
        | ProblemSource
        | None = None,
        verifier: str | AnyVerifier = "math_verify",
        verifier_kwargs: Mapping[str, Any] | None = None,
        prompt_template: PromptTemplate | Mapping[str, Any] | str = _PROMPT,
        time_limit_s: float = 5.0,
        memory_limit_mb: int = 512,
        max_output_chars: int = 1000,
        max_prompt_tokens: int = 1024,
        **kwargs: Any,
    ):
        tokenizer = load_tokenizer(tokenizer)
        template = _with_tool(make_template(prompt_template), tokenizer)
        encode = partial(template.encode_batch, tokenizer=tokenizer)
        train, num_dropped = read_problems(problems, encode, max_prompt_tokens)
        sources = [train]
        if eval_problems is not None:
            held_out, also = read_problems(eval_problems, encode, max_prompt_tokens)
            sources, num_dropped = [train, held_out], num_dropped + also
        self.num_dropped_prompts = num_dropped
        for name, one in zip(("problems", "eval_problems"), sources, strict=False):
            if one.num_answers < len(one):
                raise ValueError(
                    f"`{name}` ({len(one) - one.num_answers} of {len(one)} without an "
                    "answer) must have answers, because the verifier's word is the "
                    "only reward. Leave these rows out."
                )
        process = PythonProcess(time_limit_s, memory_limit_mb, max_output_chars)
        role = _role(Bridge.of(template, tokenizer))

        # Seeds are the problems' numbers: none is in both.
        ends = [len(train), sum(map(len, sources))]

        def problem(seed: int) -> Problem:
            i = seed % ends[1]
            return train[i] if i < ends[0] else sources[1][i - ends[0]]

        chosen: dict[str, Any] = {
            "max_turns": 4,
            "max_concurrent_envs": 8,
            "step_timeout_s": time_limit_s + 60.0,
            **kwargs,
        }
        super().__init__(
            make_env=lambda: PythonTool(problem, self._verify, process, role),
            tokenizer=tokenizer,
            prompt_template=template,
            max_prompt_tokens=max_prompt_tokens,
            **chosen,
        )
        self.problems = TextTasks(self.make_text_env, range(ends[0]))
        self.eval_problems = (
            TextTasks(self.make_text_env, range(*ends)) if len(sources) > 1 else None
        )
        self.judge.verifier = make_verifier(verifier, verifier_kwargs, sources)

    def _verify(self, problem: Problem, text: str) -> Verdict | None:
        return self.judge.verify_one(problem, text)


def _with_tool(
    template: PromptTemplate, tokenizer: PreTrainedTokenizerBase
) -> PromptTemplate:
    """Adds the tool to what the chat template is given."""
    if not template.chat:
        raise ValueError(
            f"`prompt_template` ({template.template!r:.60}) must use the chat "
            "template, because calls and their results are turns of a conversation. "
            'Set `prompt_template={"chat": True}`.'
        )
    shown = str(tokenizer.chat_template)
    if "<tool_call>" in shown and "tools" in shown:
        return replace(
            template, template_kwargs={"tools": [PYTHON], **template.template_kwargs}
        )
    system = RULES if template.system is None else f"{template.system}\n\n{RULES}"
    return replace(template, system=system)


def _role(bridge: Bridge) -> str:
    """The role in which the chat template shows a tool's answer."""
    try:
        bridge.encode([{"role": "tool", "content": "4"}])
    except ValueError:
        return "user"
    return "tool"
