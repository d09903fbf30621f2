"""What Slurm's options are called here, for those who come from there; the guide's table shows the same."""

import re

GUIDE = "docs/guides/from-slurm.md"
SCRIPT_MARK = "#SBATCH"

# Slurm's option, long and short, and ours; several where either may be meant.
OPTIONS = {
    "--job-name": ("-J", "--name"),
    "--cpus-per-task": ("-c", "--cpu"),
    "--mem": ("", "--memory"),
    "--mem-per-cpu": ("", "--memory"),
    "--gpus": ("-G", "--gpu"),
    "--gres": ("", "--gpu or --resource"),
    "--licenses": ("-L", "--resource"),
    "--tmp": ("", "--disk"),
    "--ntasks": ("-n", "--array"),
    "--nodelist": ("-w", "--node"),
    "--partition": ("-p", "--queue"),
    "--account": ("-A", "--queue or --label"),
    "--qos": ("-q", "--priority"),
    "--nice": ("", "--priority"),
    "--time": ("-t", "--time-limit"),
    "--chdir": ("-D", "--cwd"),
    "--output": ("-o", "--stdout"),
    "--error": ("-e", "--stderr"),
    "--export": ("", "--env"),
    "--dependency": ("-d", "--after"),
    "--requeue": ("", "--retries"),
    "--comment": ("", "--label"),
}
# What there is nothing for, and what does instead.
_NOTHING = {
    "--mail-user": "no mail is sent: 'rota wait ID' returns when a job has ended",
    "--mail-type": "no mail is sent: 'rota wait ID' returns when a job has ended",
    "--nodes": "a task runs on one node; --array makes many tasks",
    "-N": "a task runs on one node; --array makes many tasks",
    "--exclusive": "a task that asks for all cores of a node (--cpu) is alone there",
}
_OURS = {name: ours for long, (short, ours) in OPTIONS.items() for name in (long, short) if name}


def hint(option: str) -> str:
    """`; Slurm's '--mem' is '--memory' here`, or nothing."""
    if option == "--wrap":
        return "; Slurm's '--wrap \"CMD\"' is '-- sh -c \"CMD\"' here"
    if option in _NOTHING:
        return f"; {_NOTHING[option]}"
    ours = _OURS.get(option)
    return f"; Slurm's '{option}' is '{ours}' here" if ours else ""


def array_hint(text: str) -> str:
    """What `0-9%2` is here, or nothing."""
    match = re.fullmatch(r"(.+)%(\d+)", text)
    return f"--array {match[1]} --max-running {match[2]}" if match is not None else ""


_WHEN = {"ok": "", "corr": "", "any": ":finished", "notok": ":failed"}


def after_hint(text: str) -> str:
    """What `afterok:41:42`, `41:ok` and `41,42` are here, or nothing."""
    found = []
    for part in text.split(","):
        if match := re.fullmatch(r"after(ok|corr|any|notok)((?::\d+)+)", part):
            found += [job + _WHEN[match[1]] for job in match[2][1:].split(":")]
        elif match := re.fullmatch(r"(\d+)(?::(ok|any|notok))?", part):
            found.append(match[1] + _WHEN[match[2] or "ok"])
        else:
            return ""
    return "" if found == [text] else " ".join(f"--after {each}" for each in found)


def path_hint(text: str) -> str:
    """What `out-%A_%a.txt` is here, or nothing; a job's number is not known to its path."""
    if re.search(r"%\d*[aAjJ]", text) is None:
        return ""
    here = re.sub(r"%\d*[AjJ][_.-]?", "", re.sub(r"%\d*a", "{index}", text))
    return here if "{index}" in here else "a path without it: only {index} is replaced, with the task's"


def line_count(script: str) -> int:
    """How many lines of a script are options for Slurm."""
    return sum(line.startswith(SCRIPT_MARK) for line in script.split("\n"))
