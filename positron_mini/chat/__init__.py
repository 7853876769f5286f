"""Conversations: read them, pack them into training rows, hold one."""
