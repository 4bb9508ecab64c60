"""Pure maths used by passes: importance, groups, quantization, distillation targets."""
