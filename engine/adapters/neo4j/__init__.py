"""Definitions, agents and handoffs in Neo4j: packed bodies for reads, and a graph around them for questions."""
