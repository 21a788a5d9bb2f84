"""1.3 billion parameters."""

from experiments.pod.config import Config, Data, Model, Output, Training

CONFIG = Config(
    Model(vocab=32_000, width=2048, layers=24, heads=16, kv_heads=16, head_dim=128, mlp=5_504),
    data=Data(length=4096, batch=512),
    training=Training(rate=3e-4, warmup=1_000, steps=50_000),
    output=Output(folder="runs/pod/1b3"),
)
