"""Methods that read the attention of vision transformers."""

from salviz.methods.attention import legrad, rollout

__all__ = ["legrad", "rollout"]
