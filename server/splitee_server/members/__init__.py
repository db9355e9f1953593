"""The devices of a run: who they are, who may join, what they send."""
