"""The documents' Python runs as it stands."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_the_example_of_the_readme_runs(capsys):
    examples = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert len(examples) > 1
    exec(compile("\n".join(examples), "README.md", "exec"), {})
    meets, rate_qps, best = capsys.readouterr().out.split(maxsplit=2)
    # What a shared machine answers in these few seconds is its own affair.
    assert meets in ("True", "False", "None")
    assert float(rate_qps) >= 0
    assert best.strip() == "None" or best.startswith("batch size")


def test_every_file_that_a_document_links_to_exists():
    for document in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]:
        for link in re.findall(r"\]\((?!http)([^)#]+)", document.read_text()):
            assert (document.parent / link).exists(), f"{document.name} links to {link}"
