"""No option is ignored without a word: each has an effect by itself, or is refused without its partner."""

from __future__ import annotations

from collections.abc import Iterator

import click
import pytest

from precopy.cli.command import cli
from support.commands import called

MACHINE = "--ram --layout --guest --backing --vcpus"
LIMITS = "--downtime-limit --max-rounds --max-total --on-timeout --max-throttle"
NUMBERS = "--ram --dirty-rate --working-set --bandwidth --sync-time --downtime-limit --max-rounds --switchover-overhead"

ALWAYS = {
    "": "--version",
    "run": f"{MACHINE} --workload --fill --control",
    "receive": f"{MACHINE} --control --prealloc --keep --timeout",
    "migrate": "--tracker --clear --max-bandwidth --downtime-limit --max-rounds --policy --max-total --on-timeout "
    "--verify --timeout --metrics --record --json-lines",
    "demo": "--ram --guest",
    "layout": "--ram --write",
    "snapshot compact": "--keep",
    "snapshot export": "--at --npy",
    "snapshot verify": "--at",
    "plan": f"{NUMBERS} --uncertainty --layout --recording",
    "plan sweep": f"{NUMBERS} --csv --scheduler",
    "replay": f"--policy --bandwidth --clear {LIMITS}",
    "compare": f"--policies {LIMITS}",
    "report": "-o",
    "bench sync": "--layout --ram --ram-share --listeners --variant --paused --repeat --vhost-devices --against-qemu",
    "bench bitmap": "--guest --repeat",
    "bench display": "--width --height --ram --write-rate --refresh --duration --migrate",
    "bench guest": "--ram --rewritten --write-rate --tracker --clear --clear-chunk --vcpus --downtime-limit --repeat",
    "bench track": "--size --repeat --writer",
    "bench snapshot": "--size --dirty --repeat --disk --restore-size",
    "bench predict": "--migrations --hopeless --record",
    "bench migrate": "--ram --rewritten --downtime-limit --repeat --verify --against-qemu",
}
"""Options that have an effect whatever else is given. One that is new has to be put here, or below."""

NUMBERS_OF_A_PLAN = "--ram 1G --dirty-rate 1M --bandwidth 1G --sync-time 1ms"
IGNORED = {
    "run": [
        "--hot-share 0.5",
        "--hot-share 0.0625",
        "--workload sequential --hot-share 0.5",
        "--workload idle --write-rate 5K",
        "--workload idle --write-rate max",
        "--workload idle --working-set 4M",
    ],
    "migrate": [
        "unix:/a unix:/b --clear merged --clear-chunk 10",
        "unix:/a unix:/b --max-throttle 0.5",
        "unix:/a unix:/b --throttle off --max-throttle 0.99",
        "unix:/a unix:/b --policy qemu --throttle auto-converge",
        "unix:/a unix:/b --policy nova --on-timeout switch --throttle dirty-limit",
    ],
    "demo": [
        "--hot-share 0.5",
        "--workload idle --write-rate 5K",
        "--workload idle --working-set 4M",
        "--clear merged --clear-chunk 10",
        "--clear lineage --clear-chunk 10",
        *(
            f"--guest memory {option}"
            for option in (
                "--layout q35",
                "--backing anonymous",
                "--vcpus 1",
                "--workload random",
                "--fill 0",
                "--clear ours",
                "--max-bandwidth 1G",
                "--downtime-limit 300ms",
                "--max-rounds 30",
                "--tracker auto",
                "--tcp",
            )
        ),
    ],
    "plan": [f"{NUMBERS_OF_A_PLAN} {option}" for option in ("--clear merged", "--clear-cost 10us", "--listeners 2")],
    "bench migrate": ["--rewritten 0B --write-rate 5K"],
}
"""What would be ignored. The last option is the one that the sentence is about."""


def commands(group: click.Command = cli, name: str = "") -> Iterator[tuple[str, click.Command]]:
    yield name, group
    if isinstance(group, click.Group):
        for inner in group.list_commands(click.Context(group)):
            found = group.get_command(click.Context(group), inner)
            assert found is not None
            yield from commands(found, f"{name} {inner}".strip())


def test_each_option_of_each_command_is_in_one_of_the_tables() -> None:
    refused = {name: {line.split()[-2] for line in lines if len(line.split()) > 1} for name, lines in IGNORED.items()}
    refused["demo"] |= {"--tcp"}
    for name, found in commands():
        options = {one.opts[0] for one in found.params if isinstance(one, click.Option) and not one.hidden}
        known = {*ALWAYS.get(name, "").split(), *refused.get(name, ())}
        assert options - {"--json", "--help"} - known == set(), name
        assert known - options - {"--throttle", "memory"} == set(), name


@pytest.mark.parametrize(
    "arguments",
    [f"{name} {line}" for name, lines in IGNORED.items() for line in lines],
)
def test_what_would_be_ignored_is_refused(arguments: str) -> None:
    words = arguments.split()
    option = next(word for word in reversed(words) if word.startswith("--"))
    done = called(*words)
    assert done.code == 2, done.err
    assert option in done.sentence(2)
    assert done.out == ""
