"""Pipelines: what one trial is. Loaded by name on first use, so that reading a sweep file imports no torch."""

from __future__ import annotations

PIPELINES: dict[str, str] = {
    "sft": "pipelines.finetune.sft:SFTPipeline",
    "custom": "pipelines.custom:load_custom",
}
