"""125 million parameters, the shape of GPT-2 small with a gated MLP."""

from experiments.pod.config import Config, Data, Model, Output, Training

CONFIG = Config(
    Model(vocab=32_000, width=768, layers=12, heads=12, kv_heads=12, head_dim=64, mlp=2_048),
    data=Data(length=2048, batch=256),
    training=Training(rate=6e-4, warmup=700, steps=20_000),
    output=Output(folder="runs/pod/125m"),
)
