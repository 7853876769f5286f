"""The server: OpenAI-compatible routes, the lab page, and what guards them. Needs the extra `web`."""
