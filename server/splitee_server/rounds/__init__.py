"""Rounds: opened, trained in order, committed, evaluated, reported."""
