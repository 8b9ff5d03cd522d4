"""The type checker sees every wiring of the composition root."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from config.container import Container

REPOSITORY = Path(__file__).parents[2]
ROOT = REPOSITORY / "config" / "container.py"
MAX_LINES = 250

WRONG_WIRINGS = {
    "another_adapter": ("generator=self.generator()", "generator=self.fetcher()", "arg-type"),
    "swapped_ports": ("queue=self.queue(),", "queue=self.storage(),", "arg-type"),
    "another_policy": ("policy=policies.work(", "policy=policies.recovery(", "arg-type"),
    "another_setting": ("settings().database_roles", "settings().pictures_dir", "arg-type"),
    "other_arguments": ("**policies.redis_queue(", "**policies.s3(", "misc"),
    "swapped_databases": ("background=self.reserve(),", "background=self.queue(),", "arg-type"),
    "missing_case": ("case options.Queue.MEMORY:", "case _ if settings.redis_url:", "arg-type"),
    "missing_provider": ("storage=self.storage()", "storage=self.store()", "misc"),
    "missing_argument": (" random=self.random(),", "", "call-arg"),
}
"""Mutations of the composition root, and the error code with which mypy rejects each one."""

Output = dict[str, list[str]]
"""The lines that mypy prints for each checked file, by the file's name."""


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Output:
    """Check the composition root, its mutations and the types of its providers in one run, with the
    project's configuration and cache."""
    folder = tmp_path_factory.mktemp("wiring")
    original = ROOT.read_text("utf-8")
    files = {"original": original, "providers": revealed_providers(), "override": OVERRIDES}
    for name, (right, wrong, _) in WRONG_WIRINGS.items():
        assert right in original, name
        files[name] = original.replace(right, wrong)
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text, "utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--no-error-summary", folder],
        cwd=REPOSITORY, capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert done.stderr == ""
    found: Output = {name: [] for name in files}
    for line in done.stdout.splitlines():
        found[Path(line.partition(":")[0]).stem].append(line)
    return found


def revealed_providers() -> str:
    """A module that reveals the type of each service."""
    calls = (f"reveal_type(container.{name}())\n" for name in Container.providers)
    return (
        "from config.container import Container\nfrom config.settings import Settings\n"
        "container = Container(settings=Settings())\n" + "".join(calls)
    )


OVERRIDES = """
from adapters.queue.memory import InMemoryTaskQueue
from config.container import Container, replace
from config.settings import Settings

container = Container(settings=Settings())
replace(container.queue, InMemoryTaskQueue(clock=container.clock()))
replace(container.queue, container.storage())
Container(setings=Settings())
"""


def test_wiring_of_the_composition_root_is_typed(output: Output) -> None:
    """An unchanged copy passes, so that a mutation's error is that of the mutation."""
    assert output["original"] == []


@pytest.mark.parametrize("name", WRONG_WIRINGS)
def test_wrong_wiring_is_rejected(output: Output, name: str) -> None:
    """The wrong adapter, policy or setting, a missing case and a misspelt provider are errors."""
    _, _, code = WRONG_WIRINGS[name]

    assert any(line.endswith(f"[{code}]") for line in output[name]), output[name]


def test_no_untyped_service_leaves_the_container(output: Output) -> None:
    """Each provider returns a type that the caller need not annotate."""
    types = [re.findall(r'Revealed type is "(.*)"', line)[0] for line in output["providers"]]

    assert len(types) == len(Container.providers)
    assert [it for it in types if "Any" in it.replace("Coroutine[Any, Any,", "")] == []


def test_override_of_an_adapter_is_typed(output: Output) -> None:
    """Only an adapter of the same ports can replace another one."""
    errors = {line.split(":")[1] for line in output["override"] if ": error:" in line}
    assert errors == {"8", "9"}


def test_composition_root_is_short() -> None:
    """One file to read: it names every adapter and does nothing else."""
    assert len(ROOT.read_text("utf-8").splitlines()) <= MAX_LINES
