"""Model sizes, by the name they have on the command line."""

from experiments.pod.config import Config
from experiments.pod.configs import gpt_125m, llama_1b, llama_70b, mistral_7b, tiny

CONFIGS: dict[str, Config] = {
    "tiny": tiny.CONFIG,
    "125m": gpt_125m.CONFIG,
    "1b3": llama_1b.CONFIG,
    "7b": mistral_7b.CONFIG,
    "70b": llama_70b.CONFIG,
}
