"""Loading reward models of each format from folders, without running their code."""

import json
from functools import partial

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken
from transformers import (
    AutoModelForCausalLM,
    AutoModelForTokenClassification,
    AutoTokenizer,
    Qwen2Model,
)

from pure_rllib.data.prompts import make_template
from pure_rllib.models.loading import policy_config, random_model
from pure_rllib.rewards.base import ScoringRequest
from pure_rllib.rewards.prm.model import ProcessRewardModel
from pure_rllib.testing import byte_tokenizer, tiny_model_config
from pure_rllib.testing import text_request as request
from tests.tokenizer_families import FAMILIES

CHAT = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
STEPS = ("2+3=5.", "So it is 5", "Done ки <extra_0>")


def prm_tokenizer():
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = CHAT
    tokenizer.add_tokens([AddedToken("ки", normalized=False)])
    marker = AddedToken("<extra_0>", special=True, normalized=False)
    tokenizer.add_tokens([marker], special_tokens=True)
    return tokenizer


TOKENIZER = prm_tokenizer()
CONFIG = tiny_model_config(len(TOKENIZER))
NAMED = {"_name_or_path": "tiny/Math-Shepherd-PRM"}


def save(folder, auto_class, config=CONFIG, **changes) -> str:
    model = random_model(auto_class, policy_config(config), 0)
    model.save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    change_config(folder, **changes)
    return str(folder)


def change_config(folder, **changes) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def save_qwen_prm(folder) -> str:
    """Lays a folder out like Qwen2.5-Math-PRM: its own class, a head of two layers."""
    torch.manual_seed(1)
    save(
        folder,
        AutoModelForTokenClassification,
        {**CONFIG, "num_labels": 2},
        architectures=["Qwen2ForProcessRewardModel"],
        auto_map={"AutoModel": "modeling_qwen2_rm.Qwen2ForProcessRewardModel"},
    )
    (folder / "modeling_qwen2_rm.py").write_text("raise SystemExit('remote code ran')")
    weights = load_file(folder / "model.safetensors")
    weights = {k: v for k, v in weights.items() if not k.startswith("score.")}
    size = CONFIG["hidden_size"]
    for name, shape in (("0", (size, size)), ("2", (2, size))):
        weights[f"score.{name}.weight"] = torch.randn(shape) / 4
        weights[f"score.{name}.bias"] = torch.randn(shape[0]) / 4
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return str(folder)


def test_qwen_prm_is_loaded_without_its_code(tmp_path):
    path = save_qwen_prm(tmp_path)
    prm = ProcessRewardModel.from_pretrained(
        path, tokenizer=byte_tokenizer(), dtype="float32"
    )
    assert prm.format.name == "extra_0"
    (scores,) = prm.score([request(*STEPS)])
    # By hand: the published text, transformers' bare model, and the two layers.
    weights = load_file(tmp_path / "model.safetensors")
    body = Qwen2Model.from_pretrained(path, dtype=torch.float32).eval()
    text = TOKENIZER.apply_chat_template(
        [
            {"role": "system", "content": prm.format.system},
            {"role": "user", "content": "2+3?"},
        ],
        tokenize=False,
        add_generation_prompt=True,
    )
    ids = TOKENIZER.encode(text)
    places = []
    for step in STEPS:
        ids += TOKENIZER(step, split_special_tokens=True)["input_ids"]
        places.append(len(ids))
        ids.append(TOKENIZER.convert_tokens_to_ids("<extra_0>"))
    with torch.no_grad():
        hidden = body(torch.tensor([ids])).last_hidden_state[0, places]
        hidden = torch.relu(
            hidden @ weights["score.0.weight"].T + weights["score.0.bias"]
        )
        logits = hidden @ weights["score.2.weight"].T + weights["score.2.bias"]
    good = logits.softmax(-1)[:, 1]
    np.testing.assert_allclose(scores, 2 * good - 1, atol=1e-5)
    assert np.ptp(scores) > 0.01


def test_a_causal_model_that_says_nothing_of_itself_is_refused(tmp_path):
    path = save(tmp_path, AutoModelForCausalLM)
    with pytest.raises(ValueError, match=r'must be .*"shepherd" in its name'):
        ProcessRewardModel.from_pretrained(path)
    prm = ProcessRewardModel.from_pretrained(path, prm_format="math_shepherd")
    assert prm.format.name == "math_shepherd"


def test_math_shepherd_is_read_at_its_tag(tmp_path):
    path = save(tmp_path, AutoModelForCausalLM, **NAMED)
    prm = ProcessRewardModel.from_pretrained(
        path, tokenizer=byte_tokenizer(), dtype="float32"
    )
    assert prm.format.name == "math_shepherd"
    steps = STEPS[:2]
    many = [request(*steps), request(*STEPS), request(*steps[:1])]
    scores = prm.score(many)
    text = "2+3? " + "\n".join(f"Step {n}: {s}ки" for n, s in enumerate(steps, 1))
    ids = torch.tensor([TOKENIZER.encode(text)])
    tag, plus, minus = (TOKENIZER.encode(t)[0] for t in ("ки", "+", "-"))
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    with torch.no_grad():
        logits = model(ids).logits[0, ids[0] == tag][:, [plus, minus]]
    expected = logits.softmax(-1)
    np.testing.assert_allclose(scores[0], expected[:, 0] - expected[:, 1], atol=1e-5)
    assert [len(s) for s in scores] == [2, 3, 1]


@pytest.mark.parametrize(
    ("prompt_template", "shown"),
    [
        ("plain", "2+3?"),
        ("Q: {problem}", "Q: 2+3?"),
        ({"chat": True, "system": "Add."}, "[system]Add.[user]2+3?[assistant]"),
    ],
)
def test_a_prm_is_asked_alike_by_every_policy(tmp_path, prompt_template, shown):
    path = SAVE["newline"](tmp_path)
    tokenizer = prm_tokenizer()
    given = request(*STEPS)
    own = make_template(prompt_template).encode(given.prompt, tokenizer)
    assert tokenizer.decode(own) == shown
    for policy in (byte_tokenizer(), FAMILIES["gpt2"](), FAMILIES["mistral"]()):
        prm = ProcessRewardModel.from_pretrained(
            path,
            tokenizer=policy,
            prm_format="newline",
            prompt_template=prompt_template,
        )
        (row,) = prm.builder.rows([given])
        assert row.input_ids[: len(own)].tolist() == own
        first = row.input_ids[len(own) : row.score_positions[0]]
        assert tokenizer.decode(first) == STEPS[0]


@pytest.mark.parametrize("template", [CHAT, None])
def test_newline_reads_another_vocabularys_steps_as_its_own(tmp_path, template):
    path = SAVE["newline"](tmp_path)
    tokenizer = prm_tokenizer()
    tokenizer.chat_template = template
    if template is None:
        (tmp_path / "chat_template.jinja").unlink()
    tokenizer.save_pretrained(tmp_path)
    given = request(*STEPS)
    load = partial(
        ProcessRewardModel.from_pretrained, path, prm_format="newline", dtype="float32"
    )
    reads_texts = load(tokenizer=byte_tokenizer())
    (row,) = reads_texts.builder.rows([given])
    # By hand: the problem, then each step in the PRM's tokens and one newline.
    prompt = tokenizer.encode("[user]2+3?[assistant]" if template else "2+3?")
    steps = [tokenizer(s, split_special_tokens=True)["input_ids"] for s in STEPS]
    (newline,) = tokenizer.encode("\n")
    ids, places = list(prompt), []
    for step in steps:
        places.append(len(ids) + len(step))
        ids += [*step, newline]
    assert row.input_ids.tolist() == ids and row.score_positions.tolist() == places
    # A policy that has the PRM's own vocabulary and says the same.
    reads_ids = load()
    blank = tokenizer.encode("\n\n")
    ends = np.cumsum([len(step) + len(blank) for step in steps])
    same = ScoringRequest(
        given.prompt,
        None,
        np.array(prompt),
        np.array([token for step in steps for token in (*step, *blank)]),
        np.stack([np.concatenate([[0], ends[:-1]]), ends], 1),
        STEPS,
    )
    assert type(reads_ids.builder) is not type(reads_texts.builder)
    (expected,) = reads_ids.score([same])
    np.testing.assert_allclose(reads_texts.score([given])[0], expected, atol=1e-5)
    assert np.ptp(expected) > 0.01


SAVE = {
    "newline": lambda folder: save(
        folder, AutoModelForTokenClassification, {**CONFIG, "num_labels": 2}
    ),
    "extra_0": save_qwen_prm,
    "math_shepherd": lambda folder: save(folder, AutoModelForCausalLM, **NAMED),
}


@pytest.mark.parametrize("kind", SAVE)
def test_scores_do_not_depend_on_neighbours_or_micro_batches(tmp_path, kind):
    path = SAVE[kind](tmp_path)
    rng = np.random.default_rng(0)
    texts = ["2+3=5", "so", "a longer step, with words", "x" * 40]
    many = [
        request(*rng.choice(texts, size=rng.integers(1, 5)).tolist()) for _ in range(7)
    ]
    scored = []
    for tokens in (1, 100, 100_000):
        prm = ProcessRewardModel.from_pretrained(
            path,
            tokenizer=byte_tokenizer(),
            prm_format=kind,
            dtype="float32",
            micro_batch_tokens=tokens,
        )
        scored.append(np.concatenate(prm.score(many)))
        alone = [prm.score([one])[0] for one in many[::-1]][::-1]
        np.testing.assert_allclose(scored[-1], np.concatenate(alone), atol=1e-5)
    np.testing.assert_allclose(scored[0], scored[1], atol=1e-5)
    np.testing.assert_allclose(scored[0], scored[2], atol=1e-5)
    assert np.ptp(scored[0]) > 0.01


def test_missing_weights_are_no_reward_model(tmp_path):
    # A policy's folder: its head for labels would be random numbers.
    path = save(tmp_path, AutoModelForCausalLM)
    with pytest.raises(ValueError, match="a Qwen2ForCausalLM, without labels"):
        ProcessRewardModel.from_pretrained(path, prm_format="newline")
    # The same if its config calls it a classifier.
    change_config(tmp_path, architectures=["Qwen2ForTokenClassification"])
    with pytest.raises(ValueError, match=r"lacks score.*weight.*'newline'"):
        ProcessRewardModel.from_pretrained(path, prm_format="newline")


def test_other_classes_need_trust(tmp_path):
    path = save_qwen_prm(tmp_path)
    change_config(tmp_path, architectures=["LlamaForProcessRewardModel"])
    with pytest.raises(ValueError, match=r"`trust_remote_code` \(False\) must be on"):
        ProcessRewardModel.from_pretrained(path)
    change_config(tmp_path, auto_map={})
    with pytest.raises(ValueError, match="or bring its code along"):
        ProcessRewardModel.from_pretrained(path)


def test_labels_may_be_named_the_other_way_round(tmp_path):
    config = {**CONFIG, "num_labels": 2}
    path = save(tmp_path, AutoModelForTokenClassification, config)
    load = {"prm_format": "newline", "tokenizer": AutoTokenizer.from_pretrained(path)}
    (usual,) = ProcessRewardModel.from_pretrained(path, **load).score([request(*STEPS)])
    change_config(
        tmp_path,
        id2label={"0": "good", "1": "bad"},
        label2id={"good": 0, "bad": 1},
    )
    (other,) = ProcessRewardModel.from_pretrained(path, **load).score([request(*STEPS)])
    np.testing.assert_allclose(usual, -other, atol=1e-6)
