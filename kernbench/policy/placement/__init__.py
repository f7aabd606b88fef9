"""How tensors spread over memory."""
