"""Has promtool check and test the alerts."""

import itertools
import shutil
import subprocess

import yaml

from refusal import expect


def check(root):
    """Checks the alerts, and says how many there are."""
    directory = root / "alerts"
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    shipped = root / "k8s/components/monitoring"
    rules = yaml.safe_load((shipped / "alerts.yaml").read_text())["spec"]
    (directory / "alerts.rules.yaml").write_text(yaml.safe_dump(rules))
    tests = shipped / "alerts.test.yaml"
    shutil.copy(tests, directory)
    checks = ["check", "rules", "--lint=all", "--lint-fatal", "alerts.rules.yaml"]
    for command in (checks, ["test", "rules", tests.name]):
        done = subprocess.run(["promtool", *command], cwd=directory, capture_output=True, text=True)
        expect(done.returncode == 0, done.stdout + done.stderr)

    # Each alert is seen to fire in one test at least, and not to fire in another.
    seen = {
        (test["alertname"], bool(test["exp_alerts"]))
        for case in yaml.safe_load(tests.read_text())["tests"]
        for test in case["alert_rule_test"]
    }
    alerts = [rule["alert"] for group in rules["groups"] for rule in group["rules"]]
    for alert, fires in itertools.product(alerts, (True, False)):
        expect((alert, fires) in seen, f"no test makes {alert} {'fire' if fires else 'not fire'}")
    return len(alerts)
