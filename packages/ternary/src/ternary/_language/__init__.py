"""The ternary language: lexer, parser, checker, formatter, code generator. Knows nothing of training or packing."""
