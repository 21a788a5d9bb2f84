"""7.2 billion parameters, the shape of Mistral 7B (Jiang et al., 2023, arXiv 2310.06825)."""

from experiments.pod.config import Config, Data, Model, Output, Training

CONFIG = Config(
    Model(vocab=32_000, width=4096, layers=32, heads=32, kv_heads=8, head_dim=128, mlp=14_336),
    data=Data(length=8192, batch=128),
    training=Training(rate=3e-4, warmup=2_000, steps=250_000),
    output=Output(folder="runs/pod/7b"),
)
