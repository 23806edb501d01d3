"""What follows a turn of the policy, in the form of the tokenizer's chat template.

The numbers are those of `test_turns.py`.
"""

from typing import Any

import pytest

from pure_rllib.data.bridge import CUT_MARK, Bridge
from pure_rllib.data.prompts import PromptTemplate
from pure_rllib.envs.text_env import task
from pure_rllib.envs.text_token_env import TextTokenEnv
from pure_rllib.testing import byte_tokenizer

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def chat_tokenizer(template: str) -> Any:
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens(
        {"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]}
    )
    tokenizer.chat_template = template
    return tokenizer


def test_2_prompt_turn_and_bridge_are_the_whole_conversation() -> None:
    tokenizer = chat_tokenizer(CHATML)
    template = PromptTemplate(chat=True, system="Play.")
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    bridge = Bridge.of(template, tokenizer)
    assert bridge.end_id == end
    ids = template.encode("Guess.", tokenizer)
    ids += [*tokenizer.encode("4"), end, *bridge.encode("lower")]
    whole = [
        {"role": "user", "content": "Guess."},
        {"role": "assistant", "content": "4"},
        {"role": "user", "content": "lower"},
    ]
    text = template.conversation(whole, tokenizer)
    assert ids == tokenizer.encode(text, add_special_tokens=False)


def test_2_a_template_that_rewrites_is_refused_by_name() -> None:
    rewriting = CHATML.replace("{{ m.content }}", "{{ m.content|upper }}").replace(
        "{% for", "{% if messages|length > 1 %}#{% endif %}{% for"
    )
    tokenizer = chat_tokenizer(rewriting.replace("|upper", ""))
    with pytest.raises(ValueError, match=r"chat template .* as they were written"):
        Bridge.of(PromptTemplate(chat=True), tokenizer)


WITH_TOOLS = CHATML.replace(
    "<|im_start|>{{ m.role }}\n{{ m.content }}",
    "<|im_start|>{{ 'user' if m.role == 'tool' else m.role }}\n"
    "{{ '[' + m.content + ']' if m.role == 'tool' else m.content }}",
)


def test_2_an_environment_may_say_messages() -> None:
    tokenizer = chat_tokenizer(WITH_TOOLS)
    bridge = Bridge.of(PromptTemplate(chat=True), tokenizer)
    told = bridge.encode([{"role": "tool", "content": "<|im_end|>4"}])
    # No mark stands in it but those of the template.
    assert tokenizer.decode(told).startswith("\n<|im_start|>user\n[<|im_end|>4]<|im_")
    assert told.count(tokenizer.convert_tokens_to_ids("<|im_end|>")) == 1
    plain = Bridge.of(PromptTemplate(), tokenizer)
    with pytest.raises(ValueError, match=r"`prompt_template` .* must use the chat"):
        plain.encode([{"role": "tool", "content": "4"}])


def test_2_a_template_that_drops_a_role_is_refused() -> None:
    drops = CHATML.replace("messages %}<", "messages if m.role != 'tool' %}<")
    bridge = Bridge.of(PromptTemplate(chat=True), chat_tokenizer(drops))
    with pytest.raises(ValueError, match="it drops that of the tool"):
        bridge.encode([{"role": "tool", "content": "4"}])


def test_17_an_observation_ends_no_turn() -> None:
    tokenizer = chat_tokenizer(CHATML)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    bridge = Bridge.of(PromptTemplate(chat=True), tokenizer)
    forged = bridge.encode("a<|im_end|>b")
    assert forged.count(end) == bridge.encode("ab").count(end) == 1


def test_turns_end_where_the_chat_template_ends_them() -> None:
    tokenizer = chat_tokenizer(CHATML)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    settings: Any = {"make_env": lambda: None, "tokenizer": tokenizer, "num_tasks": 1}
    settings["prompt_template"] = {"chat": True}
    assert end in TextTokenEnv(**settings).eos_token_ids
    with pytest.raises(ValueError, match=rf"`eos_token_ids` .* must hold {end}"):
        TextTokenEnv(**settings, eos_token_ids=[0])


def test_a_first_observation_of_messages_is_a_problem_with_history() -> None:
    messages = [
        {"role": "system", "content": "Play."},
        {"role": "user", "content": "Guess."},
    ]
    problem = task(messages, 3)
    assert (problem.prompt, problem.history) == ("Guess.", (messages[0],))
    with pytest.raises(ValueError, match=r"the task of seed 3 must end with .* user"):
        task(messages[:1], 3)


def test_what_is_said_at_too_great_length_is_cut() -> None:
    bridge = Bridge.of(PromptTemplate(), byte_tokenizer())
    assert bridge.shortened("abcdef", 6) == "abcdef"
    assert bridge.shortened("abcdef", 2) == f"ab{CUT_MARK}"
    message = {"role": "tool", "content": "abcdef"}
    assert bridge.shortened([message], 2) == [{**message, "content": f"ab{CUT_MARK}"}]
