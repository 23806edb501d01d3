"""Tests of prompt templates, with a small tokenizer and with Qwen2.5's where it is."""

import functools
import json

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from pure_rllib.data.problems import ListProblems, Problem, load_problems
from pure_rllib.data.prompts import (
    TEMPLATES,
    PromptTemplate,
    drop_long_prompts,
    make_template,
)

CHAT = "{{ bos_token }}{% for m in messages %}{{ m.role }}:{{ m.content }};{% endfor %}"


def byte_tokenizer(*, bos: bool) -> PreTrainedTokenizerFast:
    """One token per byte; `bos` puts <s> before and </s> after every text."""
    names = ["<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    vocab = {name: number for number, name in enumerate(names)}
    backend = Tokenizer(models.BPE(vocab, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    if bos:
        backend.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", chat_template=CHAT
    )


def test_braces_of_problems_and_templates():
    template = PromptTemplate("Solve {problem}\nUse \\boxed{{}}.")
    problem = r"$\frac{1}{2}$ {problem} {x} {{}} {"
    assert template.fill(problem) == f"Solve {problem}\nUse \\boxed{{}}."


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("no field", r"fields are \[\]"),
        ("{question}", r"\['question'\]"),
        ("{problem} {problem}", r"\['problem', 'problem'\]"),
        ("{problem} in \\boxed{}", r"\['problem', ''\].*doubled braces"),
        ("{problem!r}", "no conversion"),
        ("{problem:>9}", "no conversion"),
        ("{problem", "expected '}'"),
    ],
)
def test_wrong_templates_are_refused(template: str, reason: str):
    with pytest.raises(ValueError, match=reason):
        PromptTemplate(template)


def test_a_system_message_needs_chat():
    with pytest.raises(ValueError, match=r"`system` \('be brief'\)"):
        PromptTemplate(system="be brief")


@pytest.mark.parametrize("bos", [False, True])
def test_plain_prompts_have_at_most_one_bos_and_no_eos(bos: bool):
    tokenizer = byte_tokenizer(bos=bos)
    begin = [0] if bos else []
    x = tokenizer.convert_tokens_to_ids("x")
    assert PromptTemplate().encode("x", tokenizer) == [*begin, x]
    # A template that names the token itself gets no second one.
    assert PromptTemplate("<s>{problem}").encode("x", tokenizer) == [0, x]


def test_chat_prompts_have_the_bos_of_their_template_only():
    tokenizer = byte_tokenizer(bos=True)
    template = PromptTemplate("Q {problem}", chat=True, system="S")
    ids = template.encode("x", tokenizer)
    assert tokenizer.decode(ids) == "<s>system:S;user:Q x;"
    assert ids.count(0) == 1
    without = PromptTemplate(chat=True).encode("x", tokenizer)
    assert tokenizer.decode(without) == "<s>user:x;"


def test_chat_needs_a_chat_template():
    tokenizer = byte_tokenizer(bos=False)
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match="no chat template"):
        TEMPLATES["pure"].encode("x", tokenizer)


def test_batches_equal_single_prompts():
    tokenizer = byte_tokenizer(bos=True)
    texts = ["a", "bb {", "", "ccc"]
    template = PromptTemplate("{problem}=")
    assert template.encode_batch(texts, tokenizer) == [
        template.encode(text, tokenizer) for text in texts
    ]
    assert template.encode_batch([], tokenizer) == []


def test_templates_are_made_of_configuration_values():
    assert make_template("plain") == PromptTemplate()
    assert make_template("Q: {problem}") == PromptTemplate("Q: {problem}")
    assert make_template({"chat": True, "system": "s"}) == PromptTemplate(
        chat=True, system="s"
    )
    assert make_template(TEMPLATES["pure"]) is TEMPLATES["pure"]
    with pytest.raises(ValueError, match=r"`template` \('pur'\).*plain or pure"):
        make_template("pur")
    with pytest.raises(TypeError, match="sytem"):
        make_template({"sytem": "s"})


def test_long_prompts_are_dropped_and_counted():
    problems = ListProblems(Problem("x" * n, "1", str(n)) for n in range(1, 2050))

    def encode(texts):
        return [list(range(len(text))) for text in texts]

    left, num_dropped = drop_long_prompts(problems, encode, 2000)
    assert (len(left), num_dropped) == (2000, 49)
    assert [left[0], left[1999]] == [problems[0], problems[1999]]
    with pytest.raises(ValueError, match=r"`max_prompt_tokens` \(0\) must be >= 1"):
        drop_long_prompts(problems, encode, 0)


def test_pure_prompts_of_qwen(shared_dir, qwen_tokenizer):
    with (shared_dir / "data/samples/math_cot_100.jsonl").open() as file:
        row = json.loads(file.readline())
    ids = TEMPLATES["pure"].encode(row["query"], qwen_tokenizer)
    assert qwen_tokenizer.decode(ids) == (
        f"<|im_start|>system\n{row['system']}<|im_end|>\n"
        f"<|im_start|>user\n{row['query']}<|im_end|>\n<|im_start|>assistant\n"
    )
    assert ids[0] == 151644


@pytest.mark.slow
def test_real_prompts_over_the_limit(shared_dir, qwen_tokenizer):
    problems = load_problems(shared_dir / "data/train/8k_math_879_answers.json")
    encode = functools.partial(TEMPLATES["pure"].encode_batch, tokenizer=qwen_tokenizer)
    left, num_dropped = drop_long_prompts(problems, encode, 200)
    lengths = [len(ids) for ids in encode([p.prompt for p in left][:500])]
    assert len(left) + num_dropped == 8523
    assert 0 < num_dropped < 1000
    assert max(lengths) <= 200
