"""What things are and how they flow: types, tree, buffer, loops, inference. Knows no Ray, no Megatron, no tool."""
