"""The ternary language: lexer, parser, checker, formatter, code generator."""
