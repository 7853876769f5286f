"""Conversations: reading them, packing them into training rows, holding one."""
