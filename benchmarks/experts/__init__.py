"""How fast a mixture of experts decodes when only the experts that are asked for move."""
