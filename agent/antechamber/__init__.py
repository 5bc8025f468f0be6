"""Antechamber: nobody gets in until proven. In-guest bootstrap agent for confidential LLM inference."""

__version__ = "0.1.0"
