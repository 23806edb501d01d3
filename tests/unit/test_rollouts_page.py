import json
import random
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from pure_rllib.reporting.records import ResponseRecord, group_records
from pure_rllib.reporting.rollouts import (
    TABLE_COLUMNS,
    rollout_table,
    span_texts,
    write_rollouts_page,
)

HOSTILE = "</script><img src=x onerror=alert(1)><!--<script>\u2028{{ 7*7 }}&lt;b&gt;"
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


def make_record(rng, group_id, prompt, answer, pieces, right):
    """A response of the given steps; tokens are words, newlines stay on the last."""
    tokens: list[str] = []
    spans: list[tuple[int, int]] = []
    for piece in pieces:
        words = re.findall(r"\s*\S+(?:\n\n$)?", piece)
        spans.append((len(tokens), len(tokens) + len(words)))
        tokens += words
    rewards = [round(rng.uniform(0.3, 0.98), 3) for _ in pieces]
    if right is not True:
        worst = rng.randrange(len(pieces))
        rewards[worst] = round(rng.uniform(-0.95, -0.2), 3)
    level = {True: 0.4, False: -0.5, None: 0.1}[right]
    return ResponseRecord(
        group_id=group_id,
        prompt=prompt,
        answer=answer,
        response_text="".join(pieces),
        response_tokens=tokens,
        token_ids=[rng.randrange(1000) for _ in tokens],
        step_spans=spans,
        step_rewards=rewards,
        verifiable_reward=None if right is None else float(right),
        outcome=None if right is None else "correct" if right else "incorrect",
        extracted_answer=re.findall(r"\d+", pieces[-1])[-1],
        terminated=rng.random() > 0.15,
        num_separators=len(pieces) - 1,
        advantages=[level + rng.gauss(0, 0.15) for _ in tokens],
        returns=[rng.gauss(0, 0.3) for _ in tokens],
        total_reward=min(rewards) + float(right or 0),
    )


def make_groups(num_groups=6, seed=0):
    """Chain arithmetic with worked solutions, some of them wrong."""
    rng = random.Random(seed)
    records = []
    for i in range(num_groups):
        numbers = [rng.randrange(2, 30) for _ in range(4)]
        prompt = f"Compute {' + '.join(map(str, numbers))} step by step."
        answer = None if i % 4 == 3 else str(sum(numbers))
        for _ in range(8):
            right = rng.random() < 0.55
            pieces, total = [], numbers[0]
            for n in numbers[1:]:
                wrong = 0 if right else rng.choice([0, 1, 10])
                pieces.append(f"First {total} + {n} = {total + n + wrong}.\n\n")
                total += n + wrong
            pieces.append(f"The answer is \\boxed{{{total}}}<|endoftext|>")
            verdict = None if answer is None else str(total) == answer
            name = f"{seed}-{i}"
            records.append(make_record(rng, name, prompt, answer, pieces, verdict))
    return group_records(records)


def hostile_group():
    tokens = ["</script>", "<img src=x onerror=alert(1)>", "\n\n", HOSTILE]
    return [
        ResponseRecord(
            group_id=HOSTILE,
            prompt=HOSTILE,
            answer=HOSTILE,
            response_text="".join(tokens),
            response_tokens=tokens,
            token_ids=[1, 2, 3, 4],
            step_spans=[(0, 3), (3, 4)],
            step_rewards=[float("nan"), -1.0],
            verifiable_reward=0.0,
            outcome="timeout",
            extracted_answer=HOSTILE,
            advantages=[0.1, -0.2, 0.0, float("nan")],
            returns=[0.0] * 4,
            metadata={HOSTILE: HOSTILE},
        )
    ]


class Page(HTMLParser):
    """Collects start tags with attributes, and the text of scripts by id."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.scripts, self.text = [], {}, []
        self._script = None
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self._script = dict(attrs).get("id", "code")

    def handle_endtag(self, tag):
        if tag == "script":
            self._script = None

    def handle_data(self, data):
        if self._script is None:
            self.text.append(data)
        else:
            self.scripts[self._script] = self.scripts.get(self._script, "") + data


def read(path):
    page = Page(Path(path).read_text(encoding="utf-8"))
    return page, json.loads(page.scripts["data"])["iterations"]


def test_page_holds_what_the_records_say(tmp_path):
    groups = make_groups()
    path = write_rollouts_page(groups, tmp_path / "a" / "rollouts.html", "A run")
    _, (page,) = read(path)
    assert page["iteration"] is None
    shown = page["groups"][0]["responses"][0]
    record = groups[0][0]
    assert shown["tokens"] == record.response_tokens
    assert [tuple(s) for s in shown["spans"]] == record.step_spans
    assert shown["rewards"] == pytest.approx(record.step_rewards, rel=1e-3)
    assert shown["advantages"] == pytest.approx(record.advantages, rel=1e-3)
    assert shown["correct"] is record.correct
    everyone = [r for group in groups for r in group]
    assert page["summary"]["responses"] == 48
    assert page["summary"]["correct"] == sum(r.correct is True for r in everyone)
    assert page["summary"]["verified"] == sum(r.correct is not None for r in everyone)


def test_what_the_environment_said_stands_where_it_stood(tmp_path):
    record = ResponseRecord(
        group_id="0",
        prompt="1 to 7?",
        answer=None,
        response_text="42",
        response_tokens=["4", "2"],
        token_ids=[4, 2],
        step_spans=[(0, 2)],
        step_rewards=[0.5],
        verifiable_reward=1.0,
        outcome="correct",
        terminated=True,
        num_turns=2,
        observations=[(1, HOSTILE)],
    )
    path = write_rollouts_page([[record]], tmp_path / "rollouts.html", "A run")
    assert HOSTILE not in path.read_text("utf-8")
    _, (page,) = read(path)
    shown = page["groups"][0]["responses"][0]
    assert (shown["turns"], shown["said"]) == (2, [[1, HOSTILE]])
    kept = json.loads(json.dumps(record.as_dict()))
    assert ResponseRecord(**kept).observations == [[1, HOSTILE]]
    assert ResponseRecord(**kept).num_turns == 2
    # Files of single responses stay as they are.
    assert not {"observations", "num_turns"} & set(make_groups()[0][0].as_dict())


def test_hostile_text_is_inert(tmp_path):
    path = write_rollouts_page(
        [hostile_group()], tmp_path / "x.html", HOSTILE, {HOSTILE: HOSTILE}
    )
    page, (iteration,) = read(path)
    tags = [tag for tag, _ in page.tags]
    assert tags.count("script") == 2 and "img" not in tags
    assert not any(a.startswith("on") for _, attrs in page.tags for a in attrs)
    assert HOSTILE in "".join(page.text)  # title and meta stand there, as text
    assert iteration["groups"][0]["responses"][0]["tokens"][3] == HOSTILE
    assert not set("<>&") & set(page.scripts["data"])
    assert "innerHTML" not in page.scripts["code"]


def test_page_needs_nothing_from_outside(tmp_path):
    path = write_rollouts_page(make_groups(1), tmp_path / "x.html", "A run")
    page, _ = read(path)
    assert not re.search(r"https?://|//[a-z]+\.|@import|url\(", path.read_text())
    assert not any({"src", "href"} & attrs.keys() for _, attrs in page.tags)
    policy = next(a["content"] for _, a in page.tags if "http-equiv" in a)
    assert policy.startswith("default-src 'none';")
    assert "script-src 'nonce-" in policy


def test_same_records_give_the_same_file(tmp_path):
    first, second = (
        write_rollouts_page(make_groups(2), tmp_path / name, "A run").read_bytes()
        for name in ("1.html", "2.html")
    )
    assert first == second


def test_page_is_bounded_and_says_so(tmp_path):
    iterations = {1: make_groups(9, seed=1), 20: make_groups(9, seed=2)}
    path = write_rollouts_page(iterations, tmp_path / "x.html", "A run", max_groups=4)
    _, pages = read(path)
    assert [p["iteration"] for p in pages] == [1, 20]
    assert [len(p["groups"]) for p in pages] == [4, 4]
    assert [p["summary"]["groups"] for p in pages] == [9, 9]
    path = write_rollouts_page(iterations, tmp_path / "x.html", "A run", max_tokens=500)
    _, pages = read(path)
    assert all(1 <= len(p["groups"]) < 4 for p in pages)
    groups = make_groups(2)
    path = write_rollouts_page(groups, tmp_path / "x.html", "A run", max_responses=3)
    _, (page,) = read(path)
    for group, shown in zip(groups, page["groups"], strict=True):
        assert len(shown["responses"]) == 3 and shown["size"] == len(group)
        assert shown["correct"] == sum(r.correct is True for r in group)
    assert page["summary"]["responses"] == sum(map(len, groups))


@pytest.mark.parametrize(
    ("groups", "words"),
    [([], "`groups`"), ({1: []}, "`groups`"), ([[]], "empty groups")],
)
def test_nothing_to_show_is_refused(tmp_path, groups, words):
    with pytest.raises(ValueError, match=words):
        write_rollouts_page(groups, tmp_path / "x.html", "A run")


def test_characters_of_several_tokens_come_from_the_whole_text():
    half = "\ufffd"
    #         step 1: "a 🙂\n\n"       step 2: "b"  step 3: "é" at the very end
    tokens = ["a ", half, half, "\n\n", "b", "<|end|>", half, half]
    spans = [(0, 4), (4, 6), (6, 8)]
    assert span_texts("a 🙂\n\nbé", tokens, spans) == ["a 🙂\n\n", None, "é"]
    assert span_texts("ab", ["a", "b"], [(0, 2)]) == [None]


def test_the_page_knows_what_there_is(tmp_path):
    def written(**fields):
        records = [replace(r, **fields) for group in make_groups(2) for r in group]
        path = write_rollouts_page([records], tmp_path / "x.html", "A run")
        (data,) = re.findall(r'id="data">(.*?)</script>', path.read_text(), re.DOTALL)
        return json.loads(data)["has"]

    everything = {
        **{"rewards": True, "verdicts": True, "advantages": True},
        "reasoning": False,
    }
    assert written() == everything
    judged = written(step_rewards=None, metadata={"reasoning": "wrong"})
    assert judged == everything | {"rewards": False, "reasoning": True}
    assert written(step_rewards=None) == everything | {"rewards": False}
    assert written(outcome=None) == everything | {"verdicts": False}
    assert written(advantages=None) == everything | {"advantages": False}


def test_table_for_wandb():
    pytest.importorskip("wandb", reason="wandb is not installed")
    records = [r for group in make_groups(2) for r in group]
    table = rollout_table(records, iteration=3, max_rows=10)
    assert tuple(table.columns) == TABLE_COLUMNS
    assert len(table.data) == 10
    row = dict(zip(TABLE_COLUMNS, table.data[0], strict=True))
    assert row["iteration"] == 3 and row["response"] == records[0].response_text
    assert row["min reward"] == min(records[0].step_rewards)
    unscored = [replace(record, step_rewards=None) for record in records]
    columns = rollout_table(unscored, iteration=3).columns
    assert set(TABLE_COLUMNS).difference(columns) == {"step rewards", "min reward"}


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium to open the page")
def test_page_runs_in_a_browser(tmp_path):
    groups = [hostile_group(), *make_groups(3)]
    path = write_rollouts_page({5: groups}, tmp_path / "x.html", "A run")
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu"]
    command += ["--disable-background-networking", "--no-first-run", "--dump-dom"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", path.as_uri()]
    out = subprocess.run(
        command, capture_output=True, text=True, check=True, timeout=120
    )
    page = Page(out.stdout)
    assert "img" not in [tag for tag, _ in page.tags]
    classes = [attrs.get("class") for _, attrs in page.tags]
    assert classes.count("item") == 4  # one entry per group
    assert classes.count("card") == 1 and classes.count("step") == 2
    assert HOSTILE in "".join(page.text)
