"""The flags that say how a run learns, shared by `splitee server` and the simulation: fields of RunSpec."""

from __future__ import annotations

from splitee.cli.run_settings import run_settings

learning_settings = run_settings(
    "learning_rate",
    "trunk_learning_rate",
    "optimizer",
    "schedule",
    "warm_up",
    "momentum",
    "weight_decay",
    "augmentation",
    "balanced_loss",
    "soft_labels",
    "client_averaging",
    "aggregation_every",
    "weighting",
)
