"""An agent framework against the server, as it is: it calls a tool, and answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.rabbitllm.serving.processes import serving

pytest.importorskip("langchain")
pytest.importorskip("langchain_openai")


@pytest.mark.parametrize("streamed", [False, True])
def test_an_agent_of_langchain_calls_a_tool_and_answers(caller: Path, streamed: bool) -> None:
    from langchain.agents import create_agent
    from langchain_openai import ChatOpenAI

    asked: list[str] = []

    def weather(city: str) -> str:
        """How the weather is in a city."""
        asked.append(city)
        return "rain"

    with serving(caller, "--host-memory", "min", "--name", "caller") as url:
        model: Any = ChatOpenAI(base_url=url, api_key="none", model="caller", streaming=streamed)
        agent = create_agent(model, tools=[weather])
        turns = agent.invoke({"messages": [("user", "How is the weather in Paris?")]})["messages"]
    assert asked == ["Paris"]
    assert [turn.type for turn in turns] == ["human", "ai", "tool", "ai"]
    assert turns[-1].content == "It rains in Paris."
