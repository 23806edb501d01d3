"""Environments. Importing this package registers their ids with Gymnasium."""

import gymnasium as gym

ENV_IDS = {
    "pure_rllib/Math-v0": "pure_rllib.envs.math_env:MathEnv",
    "pure_rllib/Arithmetic-v0": "pure_rllib.envs.arithmetic:ArithmeticEnv",
    "pure_rllib/Labels-v0": "pure_rllib.envs.labels:LabelEnv",
    "pure_rllib/ReasoningGym-v0": (
        "pure_rllib.envs.adapters.reasoning_gym:ReasoningGymEnv"
    ),
    "pure_rllib/Gymnasium-v0": "pure_rllib.envs.adapters.gymnasium:GymnasiumEnv",
    "pure_rllib/GEM-v0": "pure_rllib.envs.adapters.gymnasium:GemEnv",
    "pure_rllib/TextArena-v0": "pure_rllib.envs.adapters.textarena:TextArenaEnv",
    "pure_rllib/OpenEnv-v0": "pure_rllib.envs.adapters.openenv:OpenEnv",
    "pure_rllib/Text-v0": "pure_rllib.envs.text_token_env:TextTokenEnv",
    "pure_rllib/GuessNumber-v0": "pure_rllib.envs.guess_number:GuessNumberEnv",
    "pure_rllib/Calculator-v0": "pure_rllib.envs.calculator:CalculatorEnv",
    "pure_rllib/WordProblems-v0": "pure_rllib.envs.word_problems:WordProblemEnv",
    "pure_rllib/PythonTool-v0": "pure_rllib.envs.python_tool:PythonToolEnv",
}

for _env_id, _entry_point in ENV_IDS.items():
    if _env_id not in gym.registry:
        gym.register(_env_id, entry_point=_entry_point)
