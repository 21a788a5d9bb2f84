"""Runnable reproductions: `python -m experiments list | run NAME | report`.

An experiment is one module, or a folder of them. It exposes

    Config                          a frozen dataclass whose fields are the command-line flags; `quick()` is small
    run(config, context) -> Result  the work; `Result` is a NamedTuple of arrays and numbers, and may nest
    claims(result) -> list[Claim]   what theory predicts beside what was measured
    plot(result) -> dict            file stem to matplotlib figure

and is listed in `experiments/registry.py`.
"""
