"""The KBS protocol: messages, the agent's side, and the embedded broker."""
