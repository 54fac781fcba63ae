"""What runs inside the subprocess of the `python` tool: bind its own limits, run stdin, echo the last expression.

Started as `python -I python_child.py LIMITS`, with LIMITS a JSON object of `resource` names and values. It knows
nothing of this project, so that it starts in some 20 ms.
"""

import ast
import json
import resource
import sys
import textwrap


def _bind_limits(limits: dict[str, int]) -> None:
    for name, value in limits.items():
        kind = getattr(resource, name)
        _, ceiling = resource.getrlimit(kind)
        soft = value if ceiling == resource.RLIM_INFINITY else min(value, ceiling)
        # The soft limit on CPU time is a signal that names itself, and can be caught; the hard one cannot.
        is_room = ceiling == resource.RLIM_INFINITY or soft < ceiling
        hard = soft + 1 if name == "RLIMIT_CPU" and is_room else soft
        resource.setrlimit(kind, (soft, hard))


def main() -> None:
    limits = json.loads(sys.argv.pop())
    source = textwrap.dedent(sys.stdin.read()).strip()
    _bind_limits(limits)
    tree = ast.parse(source, "<python>")
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    names = {"__name__": "__main__"}
    exec(compile(tree, "<python>", "exec"), names)
    if isinstance(last, ast.Expr):
        value = eval(compile(ast.Expression(last.value), "<python>", "eval"), names)
        if value is not None:
            sys.stdout.write(f"{value}\n")


if __name__ == "__main__":
    main()
