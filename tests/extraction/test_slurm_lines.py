"""The lines for Slurm that docs/guides/corpus.md gives, run by a stand-in for sbatch that starts processes."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from documents import blocks
from feature_folders import bytes_of
from word_model import deploy_words, long_words

_SBATCH = """#!{python}
import os, re, subprocess, sys
if "--wrap" in sys.argv:
    subprocess.run(sys.argv[sys.argv.index("--wrap") + 1], shell=True, check=True)
else:
    script = sys.argv[-1]
    told = open(script).read()
    count = int(re.search(r"#SBATCH --array=1-(\\d+)", told)[1])
    cpus = re.search(r"#SBATCH --cpus-per-task=(\\d+)", told)[1]
    jobs = []
    for number in range(1, count + 1):
        task = {{"SLURM_ARRAY_TASK_ID": str(number), "SLURM_ARRAY_TASK_COUNT": str(count), "SLURM_CPUS_PER_TASK": cpus}}
        jobs.append(subprocess.Popen(["bash", script], env=os.environ | task, stdout=sys.stderr))
        if number % 4 == 0 or number == count:
            assert [job.wait() for job in jobs] == [0] * len(jobs)
            jobs = []
    print(4711)
"""


def test_the_lines_make_what_one_command_makes(bundle_of: Callable[..., Path], tmp_path: Path) -> None:
    (lines,) = (block for block in blocks("guides/corpus.md", "bash") if "#SBATCH" in block)
    commands = lines.replace("1-32", "1-6")
    assert len([line for line in commands.splitlines() if "END" not in line]) <= 11
    deploy_words(tmp_path / "model", bundle_of("mutual"))
    (tmp_path / "data").mkdir()
    for number in range(3):
        (tmp_path / "data" / f"{number}.txt").write_text("\n\n".join(long_words(150, seed=number)))
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "sbatch").write_text(_SBATCH.format(python=sys.executable))
    (tmp_path / "bin" / "sbatch").chmod(0o755)
    paths = f"{tmp_path / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = os.environ | {"PATH": paths, "OMP_NUM_THREADS": "1"}
    subprocess.run(["bash", "-e", "-c", commands], cwd=tmp_path, env=environment, check=True)
    alone = ["sae-runtime", "extract", "model", "--text", "data", "-o", "alone", "--quiet"]
    subprocess.run(alone, cwd=tmp_path, env=environment, check=True, stdout=subprocess.DEVNULL)
    assert bytes_of(tmp_path / "features") == bytes_of(tmp_path / "alone")
    assert len(list((tmp_path / "features" / "tokens").iterdir())) > 6
