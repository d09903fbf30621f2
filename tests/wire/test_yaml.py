"""Job files: what they say, and what is said of those that are wrong."""

# ruff: noqa: E501 the messages that people read stand here whole

import re
import textwrap
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rota.wire import tree
from rota.wire.gen.v1 import job_pb2
from rota.wire.problems import BadInput
from rota.wire.yaml import read_jobs


def read(text: str) -> list[job_pb2.JobSpec]:
    return list(read_jobs(textwrap.dedent(text).encode(), "job.yaml").jobs)


def refused(text: str | bytes) -> list[str]:
    """All that is said of a file, past the ten lines that people are shown."""
    data = textwrap.dedent(text).encode() if isinstance(text, str) else text
    with pytest.raises(BadInput) as error:
        read_jobs(data, "job.yaml")
    return [str(problem) for problem in error.value.problems]


# ---------------------------------------------------------------- what is right


def test_the_example_of_the_design() -> None:
    render, movie = read(
        """
        jobs:
        - name: render
          command: [blender, -b, scene.blend, -f, "{index}"]
          array: 0-999
          max_running: 50
          resources: {cpu: 4, memory: 8GiB, gpu: 1}
          env: {OCIO: /srv/ocio/config}
          cwd: /srv/render
          time_limit: 2h
          retries: 2
          on_node_loss: rerun
        - name: movie
          after: [{job: render}]
          command: [ffmpeg, -i, "out/%04d.png", out.mp4]
        """
    )
    assert render == job_pb2.JobSpec(
        name="render",
        command=["blender", "-b", "scene.blend", "-f", "{index}"],
        array="0-999",
        max_running=50,
        resources=job_pb2.Resources(cpu=4000, memory=8 * 2**30, gpu=1000),
        env={"OCIO": "/srv/ocio/config"},
        cwd="/srv/render",
        time_limit=7_200_000,
        retries=2,
        on_node_loss=job_pb2.ON_NODE_LOSS_RERUN,
    )
    assert movie == job_pb2.JobSpec(
        name="movie",
        after=[job_pb2.Dependency(job="render")],
        command=["ffmpeg", "-i", "out/%04d.png", "out.mp4"],
    )


def test_one_job_may_stand_by_itself() -> None:
    (job,) = read("command: ['true']\nqueue: night\n")
    assert job == job_pb2.JobSpec(command=["true"], queue="night")


def test_documents_are_joined() -> None:
    jobs = read("---\njobs:\n- {name: a, command: [x]}\n---\nname: b\ncommand: [y]\nafter: [{job: a}]\n---\n")
    assert [job.name for job in jobs] == ["a", "b"]


@pytest.mark.parametrize(
    "text", ["yes", "on", "1.10", "0755", "12:30:45", "null", "~", "1e3", "0x1F", "2001-01-01", ".inf", "="]
)
def test_a_text_is_what_it_looks_like(text: str) -> None:
    (job,) = read(f"command: [echo, {text}]\nenv: {{A: {text}}}\nstdout: {text}\n")
    assert job.command[1] == job.env["A"] == job.stdout == text


def test_a_number_where_a_text_is_wanted_is_its_text() -> None:
    (job,) = read(
        "{command: [sleep, 10], after: [{job: 41, when: finished}], array: 7, labels: {year: 2026}}"
    )
    assert list(job.command) == ["sleep", "10"]
    assert (job.after[0].job, job.after[0].when) == ("41", job_pb2.DEPENDENCY_WHEN_FINISHED)
    assert (job.array, job.labels["year"]) == ("7", "2026")


def test_amounts_are_written_with_their_units() -> None:
    (job,) = read(
        """
        command: [x]
        resources:
          cpu: 0.5
          memory: "1.5 GiB"
          disk: 2000B
          named: {power: 10, licence.x: 0.25}
        time_limit: 1h30m
        signal: USR1@1m
        grace: 0
        backoff: 250ms
        priority: -5
        max_failures: 0
        """
    )
    assert job.resources == job_pb2.Resources(
        cpu=500, memory=3 * 2**29, disk=2000, named={"power": 10_000, "licence.x": 250}
    )
    assert (job.time_limit, job.signal, job.grace, job.backoff) == (5_400_000, "USR1@1m", 0, 250)
    assert job.HasField("grace")
    assert job.HasField("max_failures")
    assert job.priority == -5


def test_a_key_without_a_value_is_as_good_as_no_key() -> None:
    (job,) = read(
        "command: [x, '', ]\nenv:\nresources:\nafter:\nname:\nlabels: {a: }\ntime_limit:\nstdin: False\n"
    )
    assert job == job_pb2.JobSpec(command=["x", ""], labels={"a": ""})


def test_a_script_keeps_its_lines() -> None:
    (job,) = read("script: |\n  #!/bin/sh\n  echo é\n")
    assert job.script == "#!/bin/sh\necho é\n"


def test_enums_are_short_words() -> None:
    (job,) = read("{command: [x], kind: service, replicas: 2, on_node_loss: rerun_fenced}")
    assert (job.kind, job.on_node_loss) == (job_pb2.JOB_KIND_SERVICE, job_pb2.ON_NODE_LOSS_RERUN_FENCED)


def test_a_byte_order_mark_is_no_matter() -> None:
    assert read_jobs(b"\xef\xbb\xbfcommand: [x]\n", "f").jobs[0].command == ["x"]


def test_two_thousand_jobs_are_read_quickly() -> None:
    text = "jobs:\n" + "".join(
        f"- {{name: j{number}, command: [echo, '{number}'], resources: {{cpu: 2, memory: 1GiB}}, env: {{A: b}}}}\n"
        for number in range(2_000)
    )
    started = time.process_time()
    assert len(read(text)) == 2_000
    assert time.process_time() - started < 5


# ---------------------------------------------------------------- what is wrong


def test_a_problem_has_its_path_its_remedy_and_its_place() -> None:
    assert refused(
        """\
        jobs:
        - name: render
          command: [x]
          array: 0-9
          resources:
            cpu: 4
            memory: 2GBs
        """
    ) == ["jobs[0].resources.memory: '2GBs' is not a size; try 2GB or 2GiB (job.yaml:7:13)"]


def test_every_problem_of_a_file_is_said_in_the_order_of_the_file() -> None:
    assert refused(
        """\
        jobs:
        - name: render me
          comand: [blender, -b, scene.blend, -f, "{index}"]
          array: 9-0
          resources: {cpu: -1, memory: 2GBs, powr: 1, named: {Power: 1}}
          env: {A: 1, B: 2, A: 3}
          time_limit: 90
          retries: 010
          max_running: -1
          on_node_loss: rerun-fenced
          stdin: yes
          cwd: [/tmp]
        - name: movie
          after: [{job: rendr}, {job: 41}, movie]
          command: ffmpeg -i x
          cwd: "a\\0b"
        - [x]
        """
    ) == [
        "jobs[0].name: 'render me' is not allowed; use letters, digits, '_', '.' and '-', beginning and ending with a letter or digit (job.yaml:2:9)",
        "jobs[0].comand: unknown key; did you mean command? (job.yaml:3:3)",
        "jobs[0].array: '9-0' is upside down; try 0-9 (job.yaml:4:10)",
        "jobs[0].resources.cpu: '-1' is negative; the least is 0 (job.yaml:5:20)",
        "jobs[0].resources.memory: '2GBs' is not a size; try 2GB or 2GiB (job.yaml:5:32)",
        "jobs[0].resources.powr: unknown key; did you mean cpu, memory, gpu, disk, or named: {powr: ...}? (job.yaml:5:38)",
        "jobs[0].resources.named: 'Power' is no name for it; use small letters, digits, '_', '.' and '-', a letter first, at most 63 (job.yaml:5:54)",
        "jobs[0].env.A: is there twice; keep one of them (job.yaml:6:21)",
        "jobs[0].time_limit: '90' has no unit; try 90s (job.yaml:7:15)",
        "jobs[0].retries: '010' is not a whole number; try 10 (job.yaml:8:12)",
        "jobs[0].max_running: '-1' is negative; the least is 0 (job.yaml:9:16)",
        "jobs[0].on_node_loss: 'rerun-fenced' is not known; try one of rerun, rerun_fenced, hold, cancel (job.yaml:10:17)",
        "jobs[0].stdin: 'yes' is neither true nor false; write one of them (job.yaml:11:10)",
        "jobs[0].cwd: a list stands where one value is due (job.yaml:12:8)",
        "jobs[1].after[0].job: no job of this submission is named 'rendr'; did you mean render me? (job.yaml:14:17)",
        "jobs[1].after[2]: 'movie' is no mapping; write {job: movie} (job.yaml:14:36)",
        "jobs[1].command: 'ffmpeg -i x' is no list; write [ffmpeg, -i, x] (job.yaml:15:12)",
        "jobs[1].cwd: has a NUL character at position 1; remove it (job.yaml:16:8)",
        "jobs[2]: a list is no mapping; write {name: ...} (job.yaml:17:3)",
    ]  # fmt: skip


def test_people_see_ten_lines_and_a_count() -> None:
    with pytest.raises(BadInput) as error:
        read_jobs(("jobs:\n" + "- {command: [x], retries: x}\n" * 17).encode(), "job.yaml")
    lines = str(error.value).splitlines()
    assert len(lines) == 11
    assert lines[9] == "jobs[9].retries: 'x' is not a whole number; try 1 or 10 (job.yaml:11:27)"
    assert lines[10] == "and 7 more"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "there are no jobs; begin with 'jobs:' and a list of them (job.yaml)"),
        ("# nothing\n---\n---\n", "there are no jobs; begin with 'jobs:' and a list of them (job.yaml)"),
        ("jobs: []\n", "there are no jobs; begin with 'jobs:' and a list of them (job.yaml)"),
        ("jobs:\n", "there are no jobs; begin with 'jobs:' and a list of them (job.yaml)"),
        ("hello\n", "'hello' is no mapping; begin with 'jobs:' and a list of jobs, or with a job's keys (job.yaml:1:1)"),
        ("- command: [x]\n", "a list is no mapping; begin with 'jobs:' and a list of jobs, or with a job's keys (job.yaml:1:1)"),
        ("jobs: x\n", "jobs: 'x' is no list; write [x] (job.yaml:1:7)"),
        ("jobs: {command: [x]}\n", "jobs: a mapping is no list (job.yaml:1:7)"),
        ("job:\n- command: [x]\n", "job: unknown key; did you mean jobs? (job.yaml:1:1)"),
        ("cmd: [x]\n", "cmd: unknown key; did you mean command? (job.yaml:1:1)"),
        ("command: [x]\ncpu: 2\n", "cpu: unknown key; did you mean resources: {cpu: ...}? (job.yaml:2:1)"),
        ("command: [x]\nmem: 2\n", "mem: unknown key; did you mean resources: {memory: ...}? (job.yaml:2:1)"),
        ("command: [x]\nlines: []\n", "lines: has no lines, so there is nothing to run (job.yaml:2:8)"),
        ("command: [x]\nafter: b\n", "after: 'b' is no list; write [{job: b}] (job.yaml:2:8)"),
        ("command: [x]\nafter: {job: b}\n", "after: a mapping is no list; write [{job: ...}] (job.yaml:2:8)"),
        ("command: [echo, \"x]\nenv: {}\n", "this is no YAML: what begins here has no end (job.yaml:1:17)"),
        ("jobs: [{command: [x]}]\nname: y\n", "name: unknown key beside jobs; a job's own keys stand in the list (job.yaml:2:1)"),
        ("jobs: [{command: [x]}]\njobs: []\n", "jobs: is there twice; keep one of them (job.yaml:2:1)"),
        ("name: x\n", "command: is missing: a job needs a command, a script or a path (job.yaml:1:1)"),
        ("command: [x]\nresources: {memory: 1X}\n", "resources.memory: '1X' is not a size; try 1GB or 1GiB (job.yaml:2:21)"),
        ("command: [x]\nresources: 4\n", "resources: '4' is no mapping; write {cpu: 4} (job.yaml:2:12)"),
        ("command: [x]\nenv: A=b\n", "env: 'A=b' is no mapping; write {NAME: value} (job.yaml:2:6)"),
        ("command: [x, [y], {z: 1}]\n", "command[1]: a list stands where one value is due (job.yaml:1:14)"),
        ("command: [x]\n? [a, b]\n: c\n", "a list cannot be a key; a key is a name (job.yaml:2:3)"),
        ("command: [x]\nretries: 99999999999\n", "retries: '99999999999' is far too large (job.yaml:2:10)"),
        ("command: [x]\npriority: -99999999999\n", "priority: '-99999999999' is too small (job.yaml:2:11)"),
        ("command: [x]\nretries: 1.0\n", "retries: '1.0' is not a whole number; try 1 or 10 (job.yaml:2:10)"),
        ("command: &a [x]\n", "command: '&a' names a part to repeat it; leave it out, anchors are not allowed (job.yaml:1:10)"),
        ("command: [*a]\n", "command[0]: '*a' repeats another part; write it out, aliases are not allowed (job.yaml:1:11)"),
        ("command: [!!python/name:os.system x]\n", "command[0]: 'tag:yaml.org,2002:python/name:os.system' is a tag; leave it out, types come from the fields (job.yaml:1:11)"),
        ("command: [!!str x]\n", "command[0]: 'tag:yaml.org,2002:str' is a tag; leave it out, types come from the fields (job.yaml:1:11)"),
        ("command: [x\n", "this is no YAML: did not find expected ',' or ']' (job.yaml:2:1)"),
        ("a: b: c\n", "this is no YAML: mapping values are not allowed in this context (job.yaml:1:5)"),
        ("command:\n\t- x\n", "this is no YAML: found character that cannot start any token (job.yaml:2:1)"),
        ("command: [x]\nname: a\x01b\n", "this is no YAML: control characters are not allowed (job.yaml:2:1)"),
        ("command: [x]\nname: \x00\n", "this is no YAML: control characters are not allowed (job.yaml:2:1)"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_one_clear_line(text: str, says: str) -> None:
    assert refused(text)[0] == says


def test_bytes_that_are_no_text_are_named() -> None:
    assert refused(b"command: [x]\nname: \xff\n") == ["the byte 0xff is no UTF-8 text (job.yaml:2:1)"]
    assert refused("command: [x]".encode("utf-16")) == ["the byte 0xff is no UTF-8 text (job.yaml:1:1)"]


def test_what_follows_from_a_slip_is_not_said() -> None:
    assert refused("comand: [x]\n") == ["comand: unknown key; did you mean command? (job.yaml:1:1)"]
    assert refused("command: [x]\nsignal: USR1@60s\ntime_limit: 5\n") == [
        "time_limit: '5' has no unit; try 5s (job.yaml:3:13)"
    ]
    assert refused("command: [x]\nlines: [a, b]\narray: [x]\n") == [
        "array: a list stands where one value is due (job.yaml:3:8)"
    ]
    assert refused("command: {x: y}\n") == ["command: a mapping is no list (job.yaml:1:10)"]
    assert refused("jobs:\n- 5\n") == ["jobs[0]: '5' is no mapping; write {name: 5} (job.yaml:2:3)"]
    assert refused("command: [[x], 'a\\0', \"b\\0\"]\n") == [
        "command[0]: a list stands where one value is due (job.yaml:1:11)",
        "command[2]: has a NUL character at position 1; remove it (job.yaml:1:23)",
    ]


def test_what_yaml_would_make_something_of_hides_nothing_else() -> None:
    text = (
        "x: &base {cpu: 2}\n"
        "jobs:\n"
        "- command: [!!str x, *two]\n"
        "  priority: !!int 9999\n"
        "  retries: x\n"
        "  resources: {<<: *base, named: {power: *p}}\n"
        "---\n"
        "command: *c\n"
        "time_limit: !t 5m\n"
        "signal: USR1@60s\n"
        "*k : x\n"
        "rr: {a: !t b}\n"
        "---\n"
        "jobs: [!job {command: []}, *j]\n"
    )
    assert [line.partition(";")[0].partition(" (")[0] for line in refused(text)] == [
        "x: unknown key beside jobs",
        "x: '&base' names a part to repeat it",
        "jobs[0].command[0]: 'tag:yaml.org,2002:str' is a tag",
        "jobs[0].command[1]: '*two' repeats another part",
        "jobs[0].priority: 'tag:yaml.org,2002:int' is a tag",
        "jobs[0].retries: 'x' is not a whole number",
        "jobs[0].resources['<<']: unknown key",
        "jobs[0].resources['<<']: '*base' repeats another part",
        "jobs[0].resources.named.power: '*p' repeats another part",
        "command: '*c' repeats another part",
        "time_limit: '!t' is a tag",
        "'*k' repeats another part",
        "rr: unknown key",
        "rr.a: '!t' is a tag",
        "jobs[2]: '!job' is a tag",
        "jobs[2].command: is missing: a job needs a command, a script or a path",
        "jobs[3]: '*j' repeats another part",
    ]
    assert refused("--- !!str\n") == [
        "'tag:yaml.org,2002:str' is a tag; leave it out, types come from the fields (job.yaml:1:5)"
    ]


def test_a_file_that_is_too_large_is_not_parsed() -> None:
    started = time.process_time()
    assert refused(b"{" * (tree.FILE_BYTES_MAX + 1)) == [
        "is larger than 4 MiB; give long lists as a file of lines (job.yaml)"
    ]
    assert time.process_time() - started < 1


def test_nesting_has_a_limit() -> None:
    deep = "{a: " * tree.DEPTH_MAX
    assert refused(deep + "x" + "}" * tree.DEPTH_MAX)[1].startswith("a: unknown key; ")
    assert refused(deep + "{a: x}") == [f"this is nested more than {tree.DEPTH_MAX} deep (job.yaml:1:129)"]


def test_the_number_of_values_has_a_limit() -> None:
    half = tree.NODES_MAX // 2
    around = 15  # the values that are there without lines

    def two_jobs(lines: int) -> bytes:
        return b"jobs:\n" + b"".join(
            b"- {command: [x], lines: [%s]}\n" % (b"a," * count) for count in (half, lines - half)
        )

    first, second = read_jobs(two_jobs(tree.NODES_MAX - around), "f").jobs
    assert len(first.lines) + len(second.lines) == tree.NODES_MAX - around
    (said,) = refused(two_jobs(tree.NODES_MAX - around + 1))
    assert said.startswith(
        "there are more than 500,000 values; give long lists as a file of lines (job.yaml:3:"
    )


@pytest.mark.parametrize(
    "start",
    [
        "[",
        "{a: ",
        "- ",
        "? ",
        "[? ",
        "[a, ",
        "- - ",
        "*a ",
        "&a ",
        "!",
        '"',
        "'",
        "|\n",
        "%",
        "[{",
        "a: ",
        "{a,",
    ],
)
def test_a_hostile_file_is_refused_in_little_time(start: str) -> None:
    started = time.process_time()
    assert len(refused((start * tree.FILE_BYTES_MAX)[: tree.FILE_BYTES_MAX].encode())) == 1
    assert time.process_time() - started < 10


# ---------------------------------------------------------------- anything at all


def is_read_or_refused(data: bytes) -> None:
    try:
        read_jobs(data, "job.yaml")
    except BadInput as error:
        lines = [str(problem) for problem in error.problems]
    else:
        return
    assert lines
    breaks = data.count(b"\n") + data.count(b"\r")
    breaks += len(re.findall(rb"\xc2\x85|\xe2\x80[\xa8\xa9]", data))
    for line in lines:
        assert line.isprintable()
        assert len(line) < 1_000
        place = re.search(r" \(job\.yaml(?::(\d+):(\d+))?\)$", line)
        assert place is not None, line
        # An end of the file that comes too early is behind the last line.
        assert 1 <= int(place[1] or 1) <= breaks + 2, line
        assert 1 <= int(place[2] or 1) <= len(data) + 1, line


@given(st.binary(max_size=200))
def test_any_bytes(data: bytes) -> None:
    is_read_or_refused(data)


KEYS = st.sampled_from([field.name for field in job_pb2.JobSpec.DESCRIPTOR.fields]) | st.text(max_size=4)
ONE_WORD = """x -1 0 1.5 2GiB 90s 0-9 [x] {cpu:1} [{job:41}] yes *a &a !t "a\\0" service hold TERM@5s [[x]]
    ' é ~ --- ? {A:{B:c}} | > ["""
SOME_WORDS = ["", "a: b", "{cpu: 1}", "[{job: 41}]", "&a x", "|\n    a\n", "{A: {B: c}}", "? a"]
WORDS = st.sampled_from(ONE_WORD.split() + SOME_WORDS)


@given(
    st.lists(st.tuples(KEYS, WORDS | st.text(max_size=6)), max_size=8),
    st.sampled_from(["", "jobs:\n- ", "jobs:\n  "]),
)
def test_anything_like_a_job(pairs: list[tuple[str, str]], start: str) -> None:
    indent = "  " if start else ""
    text = start + f"\n{indent}".join(f"{key}: {value}" for key, value in pairs)
    is_read_or_refused(text.encode("utf-8", "surrogatepass"))


# What YAML, Python or a pair of eyes would take for something else.
STRANGE = [
    "<<: {cpu: 2}", "<<", "=", ".nan", "-.inf", "1e999", "nan", "NaN", "0x7f", "0o17", "017", "1_000", "+1", "--1",
    "1" * 5_000, "-" + "9" * 30, "9223372036854775807", "9223372036854775808", "9223372036854775807GiB",
    "0." + "0" * 400 + "1", "1e-400", "2001-12-14t21:59:43.10-05:00", "2001-02-30", "12:30:45",
    "１２", "٣", "²", "½", "Ⅷ", "1\u00a0GiB", "1\u202fGiB", "ⅼ2h", "2ｈ", "1h 30m", "соmmand", "ｃpu", "\u200bname", "na\u0301me",
    "\ufeffname", "a\u2028b", "a\x85b", "\u202egpj", "\ud7ff", "\uffff", "😀", "\U0010ffff", "\ud800",
    r'"\0"', r'"\x00"', r'"\ud800"', r'"\U0010FFFF"', r'"\N\L\P"', "!!binary aGk=", "!!python/object:os.system x",
    "%YAML 1.1", "---", "...", "&a", "*a", "? x : y", "? ? x", "- - - x", "[[[[x]]]]", "{{a: b}: c}", "{a: b, a: c}",
    "{a, b}", "|+2\n  x", ">-\n\n x", "# x", "'''", '"', "`x`", "@x", "\t", "\r", "\r\n",
    "0-4294967294:4000000", "0-3999999,4000000", "4294967295", "99999999999", "0-0:0", "٠-٩",
    "USR1@-1s", "KILL@9999999d", "106751991167300d", "0s", "0.5ms", "1.5", "-0", "1e3GiB",
]  # fmt: skip
STRANGE_VALUES = st.recursive(
    st.sampled_from(STRANGE) | st.text(max_size=5),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4).map(lambda items: f"[{', '.join(items)}]"),
        st.lists(st.tuples(KEYS | st.sampled_from(STRANGE), inner), max_size=4).map(
            lambda pairs: f"{{{', '.join(f'{key}: {value}' for key, value in pairs)}}}"
        ),
    ),
    max_leaves=12,
)


@given(
    st.lists(st.tuples(KEYS | st.sampled_from(STRANGE), STRANGE_VALUES), min_size=1, max_size=6),
    st.sampled_from(["", "jobs:\n- ", "command: [x]\n", "--- !t\n", "\ufeff"]),
)
def test_anything_strange(pairs: list[tuple[str, str]], start: str) -> None:
    indent = "  " if start.startswith("jobs") else ""
    text = start + f"\n{indent}".join(f"{key}: {value}" for key, value in pairs)
    is_read_or_refused(text.encode("utf-8", "surrogatepass"))


@given(st.sampled_from([field.name for field in job_pb2.JobSpec.DESCRIPTOR.fields]), STRANGE_VALUES)
def test_anything_strange_in_a_field(name: str, value: str) -> None:
    is_read_or_refused(f"command: [x]\n{name}: {value}\n".encode("utf-8", "surrogatepass"))


GOOD = b"""\
jobs:
- name: render
  command: [blender, -b, "{index}"]
  resources: {cpu: 4, memory: 8GiB, named: {power: 1}}
  env: {A: b}
  time_limit: 2h
- after: [{job: render, when: finished}]
  script: |
    exit
"""


@given(
    st.lists(
        st.tuples(
            st.integers(0, len(GOOD) - 1),
            st.integers(0, 3),
            st.sampled_from(b"[]{}:,&*!|>'\"%@`#?- \n\t\0\xff0a"),
        ),
        max_size=6,
    )
)
def test_anything_like_a_good_file(changes: list[tuple[int, int, int]]) -> None:
    data = bytearray(GOOD)
    for position, length, byte in changes:
        data[position : position + length] = bytes([byte])
    is_read_or_refused(bytes(data))
