"""A model that a laptop trains: bytes, two layers."""

from experiments.pod.config import Config, Data, Model, Output, Training

CONFIG = Config(
    Model(vocab=256, width=64, layers=2, heads=4, kv_heads=2, head_dim=16, mlp=128),
    data=Data(length=128, batch=8, threads=0),
    training=Training(steps=200, warmup=20, rate=3e-3, dtype="float32"),
    output=Output(folder="runs/pod/tiny", save_every=50),
)
