"""Agents of kind ``llm``: models behind any endpoint that speaks OpenAI's Chat Completions API."""
