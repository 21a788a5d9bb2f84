"""69 billion parameters, the shape of Llama 2 70B (Touvron et al., 2023, arXiv 2307.09288)."""

from experiments.pod.config import Config, Data, Model, Output, Training

CONFIG = Config(
    Model(vocab=32_000, width=8192, layers=80, heads=64, kv_heads=8, head_dim=128, mlp=28_672),
    data=Data(length=8192, batch=512),
    training=Training(rate=1.5e-4, warmup=2_000, steps=500_000),
    output=Output(folder="runs/pod/70b"),
)
