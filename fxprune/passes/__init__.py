"""The passes: each file replaces one thing by another, and says what and why in its docstring."""

if __name__ != "fxprune.passes":
    raise ImportError("the top-level `passes` is a link for readers of the repository: import fxprune.passes instead")
