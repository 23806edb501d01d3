"""Which format a checkpoint is asked in, and what does not fit."""

import pytest
from tokenizers import AddedToken

from pure_rllib.rewards.prm.formats import FORMATS, PRMFormat, format_ids, make_format
from pure_rllib.testing import byte_tokenizer


def tokenizer_with(*texts: str):
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in texts])
    return tokenizer


PLAIN = tokenizer_with()
MARKED = tokenizer_with("<extra_0>")
SHEPHERD = tokenizer_with("ки")


def choose(given=None, architecture=None, tokenizer=PLAIN, **kwargs) -> PRMFormat:
    return make_format(given, architecture=architecture, tokenizer=tokenizer, **kwargs)


@pytest.mark.parametrize(
    ("architecture", "tokenizer", "name"),
    [
        ("Qwen2ForTokenClassification", PLAIN, "newline"),
        ("LlamaForTokenClassification", SHEPHERD, "newline"),
        ("Qwen2ForTokenClassification", MARKED, "extra_0"),
        ("Qwen2ForProcessRewardModel", PLAIN, "extra_0"),
    ],
)
def test_the_checkpoint_chooses(architecture, tokenizer, name):
    assert choose(None, architecture, tokenizer) == FORMATS[name]


@pytest.mark.parametrize("architecture", ["MistralForCausalLM", "GPT2LMHeadModel"])
@pytest.mark.parametrize(
    "names",
    [
        ("peiyi9979/math-shepherd-mistral-7b-prm",),
        ("/models/prm", "OpenRLHF/Mistral-7b-PRM-Math-Shepherd"),
    ],
)
def test_a_causal_model_named_after_math_shepherd_is_asked_so(architecture, names):
    chosen = choose(None, architecture, SHEPHERD, names=names)
    assert chosen == FORMATS["math_shepherd"]


@pytest.mark.parametrize(
    "names", [(), (None, ""), ("mistralai/Mistral-7B-v0.3",), ("shepherd/chat",)]
)
def test_its_tokens_alone_do_not_make_a_math_shepherd(names):
    with pytest.raises(ValueError, match=r"asked in many ways.* Set `prm_format`"):
        choose(None, "MistralForCausalLM", SHEPHERD, names=names)


def test_a_format_can_be_set_and_changed():
    assert choose("newline", "MistralForCausalLM", SHEPHERD) is not None
    assert choose("newline").separator == "\n"
    assert choose("newline", separator="#").separator == "#"
    openr = choose(
        {"name": "math_shepherd", "separator": "#", "verdicts": [" +", " -"]}
    )
    assert (openr.separator, openr.verdicts) == ("#", (" +", " -"))
    assert openr.between == "\n"
    changed = choose({"prompt": "text"}, "Qwen2ForTokenClassification")
    assert (changed.name, changed.prompt) == ("newline", "text")
    assert choose(openr) == openr


def test_step_texts_are_numbered():
    assert FORMATS["math_shepherd"].step_text(3, "{n} {step}") == "Step 3: {n} {step}"
    assert FORMATS["newline"].step_text(3, "a") == "a"


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"given": "qwen"}, r"`prm_format` \('qwen'\) must be one of"),
        ({"given": {"name": "newline", "seperator": "#"}}, r"\['seperator'\]"),
        ({"given": {"name": "newline", "head": "value"}}, r"head 'value'"),
        ({"given": {"name": "newline", "step": "{n}"}}, r"\{step\} exactly once"),
        ({"given": {"name": "newline", "head": "tokens"}}, "good and the bad verdict"),
        (
            {"architecture": "MistralForCausalLM", "names": ["My-Shepherd"]},
            "'ки', '.', '-', which are not one",
        ),
        ({"architecture": "MistralForCausalLM"}, '"shepherd" in its name'),
        ({"architecture": "Qwen2ForSequenceClassification"}, "no format is known"),
        ({}, "unnamed class"),
    ],
)
def test_what_is_no_format(kwargs, match):
    with pytest.raises(ValueError, match=match):
        choose(**kwargs)


def test_where_scores_are_read():
    assert format_ids(FORMATS["newline"], PLAIN, {}) == (PLAIN.encode("\n")[0], (1, 0))
    config = {"id2label": {"0": "Correct", "1": "incorrect"}}
    assert format_ids(FORMATS["newline"], PLAIN, config)[1] == (0, 1)
    config = {"id2label": {"0": "incorrect", "1": "Correct"}}
    assert format_ids(FORMATS["newline"], PLAIN, config)[1] == (1, 0)
    plus, minus = (SHEPHERD.encode(text)[0] for text in "+-")
    assert format_ids(FORMATS["math_shepherd"], SHEPHERD, {})[1] == (plus, minus)


@pytest.mark.parametrize(
    ("given", "config", "match"),
    [
        ("newline", {"num_labels": 3}, r"`num_labels` \(3\) must be 2"),
        ("newline", {"id2label": {"0": "LABEL_0"}}, r"`num_labels` \(1\) must be 2"),
        ({"name": "newline", "separator": "ab"}, {}, "'ab'.* exactly one token"),
        ("math_shepherd", {}, "'ки'.* exactly one token"),
        (
            {"name": "math_shepherd", "separator": "#", "verdicts": ["++", "-"]},
            {},
            r"'\+\+'.* exactly one token",
        ),
        (
            {"name": "math_shepherd", "separator": "#", "verdicts": ["+", "+"]},
            {},
            "must name two tokens",
        ),
        ({"name": "newline", "prompt": "chat"}, {}, "tokenizer has none"),
    ],
)
def test_what_does_not_fit_a_checkpoint(given, config, match):
    with pytest.raises(ValueError, match=match):
        format_ids(choose(given), PLAIN, config)
