"""Prints the expressions of the dashboard as recording rules, so that promtool parses them.

Fails if one of them names a series that docs/metrics.md does not list.
"""

import json
import re
import sys

with open("monitoring/dashboard.json") as file:
    dashboard = json.load(file)
with open("docs/metrics.md") as file:
    page = file.read()
expressions = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
for expression in expressions:
    for name in re.findall(r"\bpq_[a-z_]+", expression):
        if f"`{name.removesuffix('_bucket')}`" not in page:
            sys.exit(f"dashboard.json: {name} is not in docs/metrics.md")
rules = [
    {"record": f"dashboard:{number}", "expr": expression.replace("$__rate_interval", "5m")}
    for number, expression in enumerate(expressions)
]
json.dump({"groups": [{"name": "dashboard", "rules": rules}]}, sys.stdout)
